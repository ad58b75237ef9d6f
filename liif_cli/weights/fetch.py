"""Models into the cache: downloaded or brought along, verified, read without running code, checked against their
network, converted to `.safetensors` without the optimiser, and put in place whole.

Two processes that want the same model take turns; the second finds it there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from liif_cli.errors import ModelError, OutputError, UsageError
from liif_cli.files import cannot_write, flush_to_disk
from liif_cli.weights import download
from liif_cli.weights.cache import (
    Place,
    Record,
    bundled_path,
    cache_folder,
    cached_names,
    check_size,
    drop_place,
    foreign_file,
    read_record,
    sha256_of,
    write_record,
)
from liif_cli.weights.registry import AUTO, Entry, is_name, is_sha256, registry

_SCHEMES = ("http", "https")


class Fetched(NamedTuple):
    """A model that is on this machine now."""

    name: str
    path: Path
    status: str  # "bundled", "already there", "downloaded" or "converted"
    bytes: int


class Verdict(NamedTuple):
    """What a full look at a model's file found."""

    name: str
    path: Path
    problem: str  # empty when the file is as recorded


class Quiet:
    """Tells nobody."""

    def note(self, text: str) -> None:
        """Drop it."""

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """Drop it."""


def fetch(
    entry: Entry, folder: Path, watcher: download.Watcher, *, source: str | None = None, overwrite: bool = False
) -> Fetched:
    """Have a model of the registry in the cache `folder`, held against the registry's checksum.

    It comes from `source`, an address or a file, if given; else from the file that the user put into the cache
    (`cache.drop_place`); else from the mirrors. With `overwrite` it is fetched again even if it is there.

    Raises ModelError in one line with the address and the place for the file when it is not to be had or what came is
    not the expected file; OutputError when the folder does not take it.
    """
    if entry.bundled:
        if source is not None:
            raise UsageError(f"{entry.name}: comes with liif; give your own model another name with --name")
        path = check_size(bundled_path(entry), entry.file.bytes, "install liif again")
        return Fetched(entry.name, path, "bundled", entry.file.bytes)
    if source is not None and is_url(source):
        _check_url(source, entry.file.sha256)
    place = Place(folder, entry.name)
    with _turn(place, watcher):
        if not overwrite and (there := _already_there(place)):
            return there
        dropped = drop_place(entry, folder)
        if source is not None and not is_url(source):
            return _store_local(_local_file(Path(source)), place, entry, watcher)
        if source is None and dropped.is_file():
            fetched = _store_local(dropped, place, entry, watcher)
            watcher.note(f"{dropped}: is not needed any more")
            return fetched
        urls = entry.file.mirrors if source is None else (source,)
        try:
            wanted = download.Wanted(urls, entry.file.sha256, entry.file.bytes)
            url = download.download(wanted, place.partial, watcher)
        except ModelError as error:
            doubt = _doubt(entry) if isinstance(error, download.MismatchError) else ""
            apart = "" if folder == cache_folder().absolute() else f" --dir {folder}"
            raise ModelError(
                f"{entry.name}: not fetched: {error}{doubt}; by other means: put"
                f" {download.without_password(urls[0])} at {dropped} and run liif fetch-weights {entry.name}{apart}"
            ) from None
        _confirm(entry, watcher)
        return _store_download(place, url, entry.file.sha256, _facts(entry))


def register(
    source: str,
    name: str,
    folder: Path,
    watcher: download.Watcher,
    *,
    sha256: str | None = None,
    overwrite: bool = False,
) -> Fetched:
    """Have one's own model in the cache `folder` under `name`, from an address or from a file or training run.

    Raises UsageError for a name that cannot be or is the registry's, and for an address without https whose checksum
    is not given; OutputError when another model has the name and `overwrite` is not given; else as `fetch`.
    """
    _check_own_name(name)
    if sha256 is not None and not is_sha256(sha256 := sha256.lower()):
        raise UsageError(f"--sha256 {sha256}: expected 64 hexadecimal digits")
    remote = is_url(source)
    if remote:
        _check_url(source, sha256)
    place = Place(folder, name)
    with _turn(place, watcher):
        if remote:
            if not overwrite and (there := _already_there(place, source, sha256)):
                return there
            try:
                download.download(download.Wanted((source,), sha256), place.partial, watcher)
            except ModelError as error:
                raise ModelError(f"{download.without_password(source)}: not fetched: {error}") from None
            found = _own_sha256(place.partial)
            if sha256 is None:
                watcher.note(f"{name}: nothing to hold it against; what came has --sha256 {found}")
            facts = {"name": name, "source": download.without_password(source)}
            return _store_download(place, source, found, facts)
        path = _local_file(Path(source).absolute())
        found = _own_sha256(path)
        if sha256 is not None and found != sha256:
            raise ModelError(f"{path}: its sha256 is {found}, not {sha256}; nothing was registered")
        if not overwrite and (there := _already_there(place, str(path), found)):
            return there
        return _store(path, place, str(path), found, {"name": name}, "converted")


def adopt(entry: Entry, folder: Path) -> Path:
    """Convert the file of the registry that the user put in the cache; returns the model. Raises as `fetch`."""
    return fetch(entry, folder, Quiet()).path


def verify(names: list[str], folder: Path) -> list[Verdict]:
    """Read every byte of the models named, or of all that are on this machine, and hold them against their checksums.

    Raises ModelError for a name that is not on this machine.
    """
    known = registry()
    everything = [*(name for name, entry in known.entries.items() if entry.bundled), *cached_names(folder)]
    verdicts = []
    for name in [known.aliases.get(name, name) for name in names] or everything:
        entry = known.find(name)
        if entry is not None and entry.bundled:
            verdicts.append(_look(name, bundled_path(entry), entry.file.sha256))
            continue
        place = Place(folder, name)
        try:
            record = read_record(place)
        except ModelError as error:
            verdicts.append(Verdict(name, place.model, str(error)))
            continue
        if record is not None:
            verdicts.append(_look(name, place.model, record.sha256))
        elif names:
            raise ModelError(f"{name}: is not in {folder}; see liif fetch-weights --list")
    return verdicts


def is_url(source: str) -> bool:
    """Whether a text is an address, rather than a path (`C:\\x` is a path)."""
    return "://" in source


def name_of(source: str) -> str:
    """The name of a model that was given none: the last part of its address or path, without a file's suffix."""
    last = PurePosixPath(_split(source).path) if is_url(source) else Path(source).absolute()
    return (last.name if isinstance(last, Path) and last.is_dir() else last.stem).lower()


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:  # what stands in brackets is no machine's
        raise UsageError(f"--from: is no address: {error}") from None


def _check_url(url: str, sha256: str | None) -> None:
    parts = _split(url)
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise UsageError(
            f"--from {download.without_password(url)}: expected an address that begins with https://, or a file"
        )
    if parts.scheme != "https" and sha256 is None:
        raise UsageError(
            f"--from {download.without_password(url)}: without https anyone on the way can change the file; add"
            " --sha256, or use https"
        )


def _check_own_name(name: str) -> None:
    if not is_name(name):
        raise UsageError(
            f"--name {name!r}: a model's name has at most 64 small letters, digits, dots, dashes and underscores, and"
            " begins and ends with a letter or digit"
        )
    if name == AUTO or registry().find(name) is not None:
        raise UsageError(f"--name {name}: is a name of the registry; choose another one")


@contextlib.contextmanager
def _turn(place: Place, watcher: download.Watcher) -> Iterator[None]:
    """Hold the lock of a model, after whoever has it now. The system releases it when a process ends in any way."""
    from filelock import FileLock, Timeout

    try:
        place.lock.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            watcher.note(f"another process is fetching {place.name}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise cannot_write(place.folder, error) from error
    try:
        yield
    except OSError as error:
        raise cannot_write(place.folder, error) from error
    finally:
        lock.release()


def _already_there(place: Place, source: str | None = None, sha256: str | None = None) -> Fetched | None:
    """The model if it is there; raises OutputError when the name belongs to one from elsewhere, or, but in the cache,
    where nobody keeps other things, a file of one's own lies in its place."""
    elsewhere = place.folder.absolute() != cache_folder().absolute()
    if source is not None and elsewhere and (path := foreign_file(place)):
        raise OutputError(
            f"{path}: already exists, and was not put there by fetch-weights; add --overwrite to replace it, or choose"
            " another --name"
        )
    try:
        record = read_record(place)
    except ModelError:
        return None  # a damaged record is written anew with its model
    if record is None or place.model.stat().st_size != record.bytes:
        return None
    if source is not None:
        known, given = (
            (record.source, download.without_password(source)) if sha256 is None else (record.source_sha256, sha256)
        )
        if known != given:
            raise OutputError(
                f"{place.name}: is another model already, from {record.source}; add --overwrite to replace it,"
                " or choose another --name"
            )
    return Fetched(place.name, place.model, "already there", record.bytes)


def _store_local(path: Path, place: Place, entry: Entry, watcher: download.Watcher) -> Fetched:
    found = _own_sha256(path)
    if found != entry.file.sha256:
        raise ModelError(
            f"{path}: not the expected file: its sha256 is {found}, not {entry.file.sha256}{_doubt(entry)}"
        )
    _confirm(entry, watcher)
    return _store(path, place, str(path), found, _facts(entry), "converted")


def _store_download(place: Place, url: str, sha256: str, facts: dict[str, Any]) -> Fetched:
    """Convert the finished download. It is kept only where another attempt could still succeed with it."""
    url = download.without_password(url)
    try:
        fetched = _store(place.partial, place, url, sha256, facts, "downloaded")
    except ModelError as error:
        download.forget(place.partial)
        raise ModelError(str(error).replace(str(place.partial), url)) from None
    download.forget(place.partial)
    return fetched


def _store(path: Path, place: Place, source: str, sha256: str, facts: dict[str, Any], status: str) -> Fetched:
    """Read a verified file, check it against its network, and put it in place as `.safetensors` with its record."""
    from liif_cli import checkpoint

    old = checkpoint.read(path)
    checkpoint.restore(old, str(path))
    staged = place.partial.with_suffix(place.model.suffix)
    try:
        new = checkpoint.Checkpoint(old.spec, old.tensors, {**old.facts, **facts, "source_sha256": sha256})
        checkpoint.write(staged, new, overwrite=True)
        size = staged.stat().st_size
        record = Record(
            name=place.name,
            source=source,
            source_sha256=sha256,
            network=_describe(old.spec),
            parameters=sum(tensor.numel() for tensor in old.tensors.values()),
            bytes=size,
            sha256=sha256_of(staged),
        )
        place.record.unlink(missing_ok=True)  # an older model's, which ends with it
        staged.replace(place.model)
        write_record(place, record)
        with contextlib.suppress(OSError):
            flush_to_disk(place.folder)
    finally:
        staged.unlink(missing_ok=True)
    return Fetched(place.name, place.model, status, size)


def _describe(spec: dict[str, Any]) -> str:
    encoder = spec.get("args", {}).get("encoder_spec", {}).get("name")
    return f"{spec['name']}: {encoder}" if encoder else str(spec["name"])


def _facts(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "network": entry.network,
        "licence": entry.licence,
        "source": entry.source,
        "training_data": entry.training_data,
        "scored": entry.scored,
        "scores": {data_set: dict(row) for data_set, row in entry.scores.items()},
    }


def _local_file(path: Path) -> Path:
    if path.is_dir():
        from liif_cli.checkpoint import RUN_MODEL

        path = path / RUN_MODEL
    if not path.is_file():
        raise ModelError(f"{path}: no such file; name a checkpoint, the folder of a training run or an https address")
    return path


def _own_sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None


def _doubt(entry: Entry) -> str:
    """What to add to a mismatch when the registry itself may be wrong."""
    if entry.file.confirmed:
        return ""
    return (
        " (the recorded checksum comes from one source and no download has confirmed it yet; if you trust your file,"
        " register it under a name of your own with --from and --name)"
    )


def _confirm(entry: Entry, watcher: download.Watcher) -> None:
    if not entry.file.confirmed:
        watcher.note(
            f"{entry.name}: the recorded checksum was known from one source only; this file confirms it:"
            f" sha256 {entry.file.sha256}"
        )


def _look(name: str, path: Path, sha256: str) -> Verdict:
    try:
        found = sha256_of(path)
    except OSError as error:
        return Verdict(name, path, f"cannot be read: {error.strerror or error}")
    return Verdict(name, path, "" if found == sha256 else f"damaged: its sha256 is {found}, not {sha256}")
