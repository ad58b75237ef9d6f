"""What was scored, kept as it comes, so that an interrupted evaluation can go on: one line of JSON a picture.

The book lies in the cache. A score is found again by everything it depends on (`evaluate.key`), the program's own files
included; a book is never a source of wrong numbers, at worst of none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TextIO

from liif_cli import __version__
from liif_cli.evaluate import Score

_LARGEST_BYTES = 1 << 25  # begun anew beyond, unless it is read from: about eighty thousand scores


# What computes, reads and reduces pictures beside it.
_LIBRARIES = ("torch", "numpy", "pillow", "pyvips", "lpips")


def _version() -> str:
    """Of the program: its number, and what tells a checkout, or libraries, that have changed since."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    libraries = {}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            libraries[name] = version(name)
    return f"{__version__}+{hashlib.sha256(json.dumps([stamps, libraries]).encode()).hexdigest()[:12]}"


class Scorebook:
    """A file of scores, appended to. Where it cannot be written, evaluation goes on without it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None
        self._version = _version()
        self._is_used = False

    @property
    def is_kept(self) -> bool:
        """Whether scores can be written."""
        return self._file is not None

    def read(self) -> dict[str, Score]:
        """Scores of this version by their keys; lines that are damaged, as a kill leaves them, are passed over."""
        self._is_used = True
        scores: dict[str, Score] = {}
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return scores
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                content = json.loads(line)
                if content["version"] == self._version:
                    scores[content["key"]] = Score(**content["score"])
        return scores

    def __enter__(self) -> Scorebook:
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            large = not self._is_used and self.path.is_file() and self.path.stat().st_size > _LARGEST_BYTES
            self._file = self.path.open("a", encoding="utf-8")  # where others write, too, at its end
            if large:
                self._file.truncate(0)
            elif self._file.tell():
                self._file.write("\n")  # ends a line that a kill cut short
        return self

    def add(self, key: str, score: Score) -> None:
        """Keep a score; it is with the system when this returns."""
        if self._file is not None:
            line = json.dumps({"version": self._version, "key": key, "score": score._asdict()})
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except OSError:  # from here on nothing is kept
                self.__exit__(None, None, None)
                self._file = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
