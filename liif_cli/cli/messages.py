"""Lines for people: one line each, on standard error, whatever stands in them and becomes of them."""

from __future__ import annotations

import contextlib
import sys
import unicodedata


def complain(text: str) -> None:
    """Say something about what went wrong, or what may surprise, in one line. That nobody can hear it stops nothing."""
    tell(f"liif: {text}")


def tell(text: str) -> None:
    """Print a line to standard error as it is; where that fails, go on."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def shown(text: object) -> str:
    """A name as it can be printed: control characters, which could end the line or steer the terminal, as escapes."""
    steering = ("Cc", "Zl", "Zp")
    return "".join(repr(letter)[1:-1] if unicodedata.category(letter) in steering else letter for letter in str(text))


def one_line(error: BaseException, name: object = "") -> str:
    """The words of an error on one line, the spaces of names in it as they are, and a name's own ends of lines."""
    said = str(error).replace(str(name), shown(name)) if str(name) else str(error)
    return shown(" ".join(part.strip() for part in said.splitlines()))
