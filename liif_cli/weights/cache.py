"""The folder of models that are not bundled, and what is known of each.

    CACHE/NAME.safetensors    a model, converted and checked
    CACHE/NAME.json           its record: where it came from, its size and checksum
    CACHE/FILE                where a user without a connection puts a file of the registry, under its own name
    CACHE/partial/            downloads that are not complete and the locks between processes; nothing is read from here

A model counts as there only with its record; the record is written last, so what is interrupted is not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_cache_dir

from liif_cli.errors import ModelError, OutputError
from liif_cli.files import atomic_path, with_home
from liif_cli.weights.registry import SUFFIX, Entry, bundled_folder, is_name, is_sha256, typed

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """What is known of a model in the cache."""

    name: str
    source: str  # the address or the path it came from
    source_sha256: str  # of the file as it came, before conversion
    network: str
    parameters: int
    bytes: int
    sha256: str


class Place(NamedTuple):
    """The paths of one model in a cache."""

    folder: Path
    name: str

    @property
    def model(self) -> Path:
        """The model itself."""
        return self.folder / f"{self.name}{SUFFIX}"

    @property
    def record(self) -> Path:
        """What is known of it."""
        return self.folder / f"{self.name}.json"

    @property
    def partial(self) -> Path:
        """What has come so far of a download."""
        return self.folder / "partial" / f"{self.name}.part"

    @property
    def lock(self) -> Path:
        """Held by the process that fetches."""
        return self.folder / "partial" / f"{self.name}.lock"


def cache_folder() -> Path:
    """`LIIF_CACHE`, or the platform's folder for caches; it need not exist yet."""
    given = os.environ.get("LIIF_CACHE")
    try:
        return with_home(given) if given else Path(user_cache_dir("liif", appauthor=False))
    except RuntimeError:
        raise OutputError("no home folder is known here; name a folder for models by the variable LIIF_CACHE") from None


def drop_place(entry: Entry, folder: Path) -> Path:
    """Where the file of an entry belongs that was downloaded by other means."""
    return folder / entry.file.name


def bundled_path(entry: Entry) -> Path:
    """The file of a bundled entry."""
    return bundled_folder() / entry.file.name


def read_record(place: Place) -> Record | None:
    """The record of a model that is there; None when it or its file is not. Raises ModelError for a damaged record."""
    return _read_record(place) if _is_there(place) else None


def foreign_file(place: Place) -> Path | None:
    """What lies in a model's place and was not put there as one."""
    try:
        known = place.record.exists() and bool(_read_record(place))
    except ModelError:
        return place.record
    return place.model if place.model.exists() and not known else None


def _read_record(place: Place) -> Record:
    try:
        content = json.loads(place.record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{place.record}: cannot be read ({error}); delete it and fetch {place.name} again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{place.record}: not a record; delete it and fetch {place.name} again")
    record = typed(Record, content, str(place.record))
    if record.name != place.name or not is_sha256(record.sha256):
        raise ModelError(f"{place.record}: not the record of {place.name}; delete it and fetch {place.name} again")
    return record


def write_record(place: Place, record: Record) -> None:
    """Write the record of a model, in place of an older one. Raises OutputError."""
    with atomic_path(place.record, overwrite=True) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8")


def cached_names(folder: Path) -> list[str]:
    """The names of the models in a cache, sorted."""
    return sorted(path.stem for path in folder.glob("*.json") if _is_there(Place(folder, path.stem)))


def _is_there(place: Place) -> bool:
    return is_name(place.name) and place.record.is_file() and place.model.is_file()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in small hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_size(path: Path, expected: int, remedy: str) -> Path:
    """Return a model's path if it is there and of its size, which is all that a quick look can tell.

    Raises ModelError ending in the remedy.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}; {remedy}") from None
    if size != expected:
        raise ModelError(f"{path}: damaged: {size:,} bytes, not {expected:,}; {remedy}")
    return path
