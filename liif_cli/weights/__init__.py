"""From a model's name to its file: the registry, the cache, downloads and their verification.

`resolve` is what everything else needs. It never uses the network and does not import torch, unless a file of the
registry that the user put in the cache is to be converted.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from liif_cli.errors import ModelError, OutputError
from liif_cli.weights.cache import Place, bundled_path, cache_folder, cached_names, check_size, drop_place, read_record
from liif_cli.weights.registry import AUTO, Entry, Registry, registry

__all__ = ["AUTO", "Entry", "Registry", "cache_folder", "find", "known_names", "registry", "resolve"]

_REINSTALL = "install liif again"


def resolve(name_or_path: str | Path) -> Path:
    """The checkpoint a user means: a name or an alias of the registry, a name in the cache, or else a path.

    A path is that of a checkpoint or of the folder of a training run. A name comes before a file of that name in the
    working folder; `./NAME`, or a `Path`, is the file.

    Raises ModelError for what is unknown, with the names that come close; for a model of the registry that has not
    been fetched yet, with the command that fetches it; for a file of the wrong size.
    """
    if isinstance(name_or_path, Path):
        name_or_path = os.path.join(".", name_or_path)  # noqa: PTH118 - a Path forgets its "./"
    if entry := registry().find(name_or_path):
        return _registered(entry)
    there = bool(name_or_path) and os.path.exists(name_or_path)  # noqa: PTH110 - Path.exists raises on names too long
    try:
        folder = cache_folder()
    except OutputError:
        if there:
            return Path(name_or_path)
        raise
    if name_or_path in cached_names(folder):
        place = Place(folder, name_or_path)
        if record := read_record(place):
            command = f"liif fetch-weights --from {record.source} --name {place.name}"
            return check_size(place.model, record.bytes, f"register it again: {command}")
    if there:
        return Path(name_or_path)
    raise _unknown(name_or_path)


def find(name: str) -> Entry:
    """The model of the registry with this name or alias. Raises ModelError naming the known ones."""
    entry = registry().find(name)
    if entry is None:
        known = registry()
        raise ModelError(
            f"unknown model {name!r}; {_meant(name, [*known.aliases, *known.entries])}the registry has"
            f" {', '.join(known.entries)}; to register your own: liif fetch-weights --from FILE --name NAME"
        )
    return entry


def known_names() -> list[str]:
    """Every name that `resolve` takes: aliases, the registry, the user's own."""
    known = registry()
    return list(dict.fromkeys([*known.aliases, *known.entries, *cached_names(cache_folder())]))


def _registered(entry: Entry) -> Path:
    if entry.bundled:
        return check_size(bundled_path(entry), entry.file.bytes, _REINSTALL)
    folder, command = cache_folder(), f"liif fetch-weights {entry.name}"
    place = Place(folder, entry.name)
    if record := read_record(place):
        return check_size(place.model, record.bytes, f"fetch it again: {command} --overwrite")
    if drop_place(entry, folder).is_file():
        from liif_cli.weights.fetch import adopt  # conversion needs torch

        return adopt(entry, folder)
    raise ModelError(f"the model {entry.name!r} is not on this machine yet; fetch it with: {command}")


def _unknown(text: str) -> ModelError:
    if text == AUTO:
        return ModelError(f"{AUTO}: only upscaling chooses a model by the picture; name one, such as default")
    if os.sep in text or "/" in text or text.endswith((".pth", ".pt", ".safetensors")):
        return ModelError(f"{text}: no such model file or folder")
    names = known_names()
    return ModelError(
        f"unknown model {text!r}; {_meant(text, [AUTO, *names])}known are {', '.join(names)}, and any path of a"
        " checkpoint or a training run; liif fetch-weights --list shows them, liif fetch-weights NAME brings one"
    )


def _meant(text: str, names: list[str]) -> str:
    close = difflib.get_close_matches(text.lower(), names, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(close)}? " if close else ""
