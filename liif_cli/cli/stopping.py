"""Signals that ask the program to stop: the first lets it tidy up, the second ends it at once."""

from __future__ import annotations

import concurrent.futures
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

_SHOW_CURSOR = "\x1b[?25h"  # progress bars hide it
# Where locks are taken in one step and made sure to be given back in the next. An exception in between leaves them
# taken, and the thread that wants one next waits for ever.
_LOCKING = (threading.__file__, queue.__file__, str(Path(concurrent.futures.__file__).parent))


class Stopped(KeyboardInterrupt):
    """Somebody asked the program to stop. ``exit_code`` is what shells expect: 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")


_heard: list[Stopped] = []


def check() -> None:
    """Raise what was raised before, if it got lost: exceptions are ignored while objects are being destroyed."""
    if _heard:
        raise _heard[0]


def is_asked() -> bool:
    """Whether somebody asked the program to stop."""
    return bool(_heard)


def _outside_of_locks(frame: FrameType | None) -> FrameType | None:
    """The frame itself; where it handles locks, the one that called for that."""
    outside = frame
    while frame is not None:
        if frame.f_code.co_filename.startswith(_LOCKING):
            outside = frame.f_back
        frame = frame.f_back
    return outside


def _raise_in(frame: FrameType | None, stopped: Stopped) -> None:
    """Raise in a frame of this thread as soon as it goes on."""

    def go_on(frame: FrameType, event: str, argument: Any) -> None:
        sys.settrace(None)
        raise stopped

    if frame is not None:
        frame.f_trace = go_on
        sys.settrace(lambda *_: None)


def leave(ended: SystemExit) -> NoReturn:
    """End the program; at once where a thread of ours still reads or writes, since in an interpreter that is being
    taken apart the libraries it is in would abort."""
    code = ended.code if isinstance(ended.code, int) else 0
    if any(thread.name.startswith("liif-") for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _not_lost(lost: sys.UnraisableHookArgs) -> None:
    """What was raised while an object was being destroyed, where Python ignores it, is raised after that."""
    if isinstance(lost.exc_value, Stopped):
        _raise_in(_outside_of_locks(sys._getframe().f_back), lost.exc_value)
    else:
        sys.__unraisablehook__(lost)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped in the block when the program is interrupted, terminated or its terminal is closed.

    Work that goes on for long calls `check` now and then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if _heard:
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(sys.stderr.fileno(), _SHOW_CURSOR.encode())
            os._exit(128 + number)
        _heard.append(Stopped(number))
        outside = _outside_of_locks(frame)
        if outside is frame:
            raise _heard[0]
        _raise_in(outside, _heard[0])

    before: dict[int, Any] = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # What is ignored from the start, as nohup and shells' background jobs have it, stays ignored.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    silenced, sys.unraisablehook = sys.unraisablehook, _not_lost
    try:
        yield
    finally:
        sys.unraisablehook = silenced
        _heard.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
