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


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped, once, in the block when the program is interrupted, terminated or its terminal is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(sys.stderr.fileno(), _SHOW_CURSOR.encode())
            os._exit(128 + number)
        asked = True
        raise Stopped(number)

    before: dict[int, Any] = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # What is ignored from the start, as nohup and shells' background jobs have it, stays ignored.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
