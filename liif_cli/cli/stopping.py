"""Signals that ask the program to stop: the first lets it tidy up, the second ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SHOW_CURSOR = "\x1b[?25h"  # progress bars hide it


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


def _say_unless_stopped(lost: sys.UnraisableHookArgs) -> None:
    if not isinstance(lost.exc_value, Stopped):
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
        raise _heard[0]

    before: dict[int, Any] = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # What is ignored from the start, as nohup and shells' background jobs have it, stays ignored.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    silenced, sys.unraisablehook = sys.unraisablehook, _say_unless_stopped
    try:
        yield
    finally:
        sys.unraisablehook = silenced
        _heard.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
