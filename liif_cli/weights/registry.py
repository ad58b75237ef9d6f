"""The models known by name: what `registry.toml` says of each, typed and closed.

One entry is one network in one file. A bundled entry's file lies beside the registry; a downloadable one has mirrors
and gets a place in the cache. What the user registers is an entry too, written as a record beside its file; see
`cache`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints
from urllib.parse import urlsplit

from liif_cli.errors import ModelError

REGISTRY = "registry.toml"
AUTO = "auto"  # no model's name: who enlarges pictures asks by it for whichever bundled one suits each
SUFFIX = ".safetensors"

T = TypeVar("T")

# Names become file names on every system: no separators, no leading dot, no capitals that differ by case alone.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}[a-z0-9]|[a-z0-9]")
# Windows opens these as devices, whatever the suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Scores = Mapping[str, Mapping[str, float]]  # {"Set5": {"x2": 37.51, ...}, ...}


@dataclass(frozen=True)
class RemoteFile:
    """The file of an entry, as its author made it."""

    name: str
    bytes: int
    sha256: str
    confirmed: bool  # whether a download has been held against the checksum
    mirrors: tuple[str, ...] = ()  # https addresses, tried in this order; none for a bundled file


@dataclass(frozen=True)
class Entry:
    """A model of the registry."""

    name: str
    summary: str
    network: str
    parameters: int
    licence: str  # SPDX identifier of the weights
    licence_note: str
    source: str  # where the weights come from
    training_data: str
    scored: str  # how the scores were taken, and whether measured here or published
    scores: Scores
    file: RemoteFile

    @property
    def bundled(self) -> bool:
        """Whether the model came with the program."""
        return not self.file.mirrors


class Registry(NamedTuple):
    """All entries by name, in the order of the file, and the other names some of them answer to."""

    entries: Mapping[str, Entry]
    aliases: Mapping[str, str]

    def find(self, name: str) -> Entry | None:
        """The entry of a name or an alias."""
        return self.entries.get(self.aliases.get(name, name))


def bundled_folder() -> Path:
    """The folder of the registry and the bundled models: inside the installed package, or `weights/` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "bundled"
    return installed if (installed / REGISTRY).is_file() else package.parent / "weights"


@cache
def registry() -> Registry:
    """The registry that came with the program. Raises ModelError when it is missing or not as it should be."""
    path = bundled_folder() / REGISTRY
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}; install liif again") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Registry:
    """Read a registry from TOML. Raises ModelError naming the place of whatever is unknown, missing or mistyped."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{where}: not TOML: {error}") from None
    if surplus := content.keys() - {"aliases", "models"}:
        raise ModelError(f"{where}: unknown table {min(surplus)!r}; expected aliases and models")
    entries = {
        name: _entry(name, table, f"{where}: models.{name}") for name, table in _table(content, "models", where).items()
    }
    aliases = _table(content, "aliases", where)
    for alias, name in aliases.items():
        if alias in entries or name not in entries:
            raise ModelError(f"{where}: alias {alias!r} = {name!r} must be a new name for a model that is there")
    return Registry(entries, aliases)


def is_name(text: str) -> bool:
    """Whether a text may name a model, and so a file, on every system."""
    return _NAME.fullmatch(text) is not None and _DEVICES.fullmatch(text) is None


def is_sha256(text: str) -> bool:
    """Whether a text is a SHA-256 in lower-case hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


def _entry(name: str, table: Any, where: str) -> Entry:
    if not is_name(name) or not isinstance(table, dict):
        raise ModelError(f"{where}: a model is a table under a name of small letters, digits, dots and dashes")
    file = typed(RemoteFile, _table(table, "file", where), f"{where}.file")
    if not is_sha256(file.sha256) or Path(file.name).name != file.name or file.bytes <= 0:
        raise ModelError(f"{where}.file: needs a plain name, a size and a sha256 of 64 small hexadecimal digits")
    if unsafe := [url for url in file.mirrors if urlsplit(url).scheme != "https"]:
        raise ModelError(f"{where}.file: the mirror {unsafe[0]!r} is not https")
    scores = _table(table, "scores", where)
    for data_set, row in scores.items():
        if not isinstance(row, dict) or not all(type(value) in (int, float) for value in row.values()):
            raise ModelError(f"{where}.scores.{data_set}: expected numbers by scale, such as {{ x2 = 34.67 }}")
    return typed(Entry, {**table, "name": name, "file": file, "scores": scores}, where)


def _table(content: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise ModelError(f"{where}: {key} must be a table")
    return table


def typed(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a table: every key known, every field there, plain values of the stated type.

    Raises ModelError naming the key.
    """
    hints = get_type_hints(kind)
    if surplus := table.keys() - hints.keys():
        raise ModelError(f"{where}: unknown key {min(surplus)!r}; known are {', '.join(hints)}")
    values = dict(table)
    for key, hint in hints.items():
        if hint == tuple[str, ...]:
            listed = values.get(key, [])
            if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
                raise ModelError(f"{where}: {key} must be a list of texts")
            values[key] = tuple(listed)
        elif key not in values:
            raise ModelError(f"{where}: {key} is missing")
        elif hint in (str, int, bool) and type(values[key]) is not hint:
            raise ModelError(f"{where}: {key} = {values[key]!r} must be of type {hint.__name__}")
    return kind(**values)
