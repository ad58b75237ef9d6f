"""Known data sets into the cache: downloaded, resumable, and unpacked by names that are known beforehand.

    CACHE/data/Set5/HR/baby.png           as `datasets` finds them
    CACHE/data/NAME.json                  the checksum of an archive that was unpacked
    CACHE/data/partial/NAME.part          what has come so far

Archives are not trusted: only members that the known layouts have are unpacked, to paths made here, never to the
archive's own; a set appears whole or not at all.
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
import tarfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from liif_cli.benchmarks.datasets import KNOWN
from liif_cli.errors import InputError, LiifError, ModelError
from liif_cli.files import atomic_path, cannot_write
from liif_cli.protocol import MATLAB_SCALES
from liif_cli.weights.cache import cache_folder, sha256_of
from liif_cli.weights.download import MismatchError, Wanted, Watcher, download, forget

_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}\.png"
_FOLDERS = "|".join(known.title for known in KNOWN.values() if not known.rgb)
_MEMBER = re.compile(
    rf"(?:benchmark/)?((?:{_FOLDERS})/(?:HR|LR_bicubic/X[234])/{_NAME})"
    rf"|(DIV2K_valid_HR/{_NAME})|(DIV2K_valid_LR_bicubic/X[234]/{_NAME})"
)
_LARGEST_MEMBER_BYTES = 1 << 26  # the largest picture of DIV2K has 8 MB
_MOST_MEMBERS = 4000


class Source(NamedTuple):
    """An archive and the sets it holds."""

    name: str
    url: str
    sets: Sequence[str]
    sha256: str | None = None
    bytes: int | None = None


def data_folder() -> Path:
    """Where fetched sets are: `data` in the cache folder."""
    return cache_folder() / "data"


def sources() -> list[Source]:
    """Every known archive."""
    text = (resources.files("liif_cli.benchmarks") / "sources.toml").read_text(encoding="utf-8")
    return [Source(name, **table) for name, table in tomllib.loads(text).items()]


def fetch_missing(names: Sequence[str], folders: Sequence[Path], watcher: Watcher) -> None:
    """Have the known ones of ``names`` in one of ``folders`` or the cache; what is there stays as it is.

    Raises InputError in one line with the address and the place for the archive when it is not to be had.
    """
    cache = data_folder()
    for name in names:
        known = KNOWN.get(name.lower())
        if known is None:
            continue
        roots = [root for folder in (*folders, cache) for root in (folder, folder / known.parent)]
        if any((root / known.high_res).is_dir() for root in roots):
            continue
        for source in sources():
            if name.lower() in source.sets:
                fetch(source, cache, watcher)
        if not (cache / known.high_res).is_dir():
            raise InputError(f"{name}: the archive that was fetched does not have it; delete {cache} and try again")


def fetch(source: Source, folder: Path, watcher: Watcher) -> None:
    """Download an archive and unpack it into ``folder``; nothing happens where it was unpacked already.

    Raises InputError, OutputError.
    """
    from filelock import FileLock

    record, partial = folder / f"{source.name}.json", folder / "partial" / f"{source.name}.part"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(partial.with_suffix(".lock")):
            if record.is_file() and _is_there(record, folder):
                return
            watcher.note(f"fetching {source.url}")
            try:
                download(Wanted((source.url,), source.sha256, source.bytes), partial, watcher)
            except ModelError as error:
                if isinstance(error, MismatchError):
                    forget(partial)
                raise InputError(
                    f"{source.name}: not fetched: {error}; by other means: unpack {source.url} into a folder and name"
                    " it with --data"
                ) from None
            sha256 = sha256_of(partial)
            if source.sha256 is None:
                watcher.note(f"{source.name}: no checksum of it is known; what came has sha256 {sha256}")
            try:
                folders = unpack(partial, folder)
            except LiifError:
                forget(partial)  # a damaged archive would only be found damaged again
                raise
            with atomic_path(record, overwrite=True) as temporary:
                temporary.write_text(json.dumps({"url": source.url, "sha256": sha256, "folders": folders}) + "\n")
            forget(partial)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _is_there(record: Path, folder: Path) -> bool:
    """Whether what was unpacked from an archive has not been deleted since."""
    try:
        return all((folder / name).is_dir() for name in json.loads(record.read_text())["folders"])
    except (ValueError, KeyError, TypeError):
        return False


def unpack(archive: Path, folder: Path) -> list[str]:
    """Unpack the known pictures of a tar or zip archive into ``folder``; the folders of them, below it.

    Files that are there already are left as they are. Raises InputError for an archive that is damaged, holds none or
    holds more than it can.
    """
    staged = folder / "partial" / f"{archive.stem}.unpacked"
    shutil.rmtree(staged, ignore_errors=True)
    count = 0
    try:
        for name, size, stream in _members(archive):
            match = _MEMBER.fullmatch(PurePosixPath(name).as_posix())
            if match is None:
                continue
            count += 1
            if size > _LARGEST_MEMBER_BYTES or count > _MOST_MEMBERS:
                raise InputError(f"{archive}: {name}: too large for a picture of a known set; nothing was unpacked")
            target = staged / (match[1] or match[2] or match[3])
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(stream, out)
        if not count:
            raise InputError(f"{archive}: no pictures of a known set in it")
        _check_counts(staged)
        return _move(staged, folder)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, IndexError, UnicodeError,
            NotImplementedError, RuntimeError) as error:  # fmt: skip
        raise InputError(f"{archive}: a damaged archive ({error}); fetch it again") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Plain files of an archive: name, size, content. Links, devices and folders are passed over."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    with zipped.open(info) as stream:
                        yield info.filename, info.file_size, stream
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            stream_or_none = tar.extractfile(member) if member.isreg() else None
            if stream_or_none is not None:
                with stream_or_none as stream:
                    yield member.name, member.size, stream


def _check_counts(staged: Path) -> None:
    for known in KNOWN.values():
        for folder in (known.high_res, *(f"{known.low_res}/X{scale:g}" for scale in MATLAB_SCALES)):
            found = len(list((staged / folder).glob("*.png")))
            if found and found != known.pictures:
                raise InputError(f"{folder}: {found} pictures came, not {known.pictures}; fetch it again")


def _move(staged: Path, folder: Path) -> list[str]:
    """Put folders of pictures in place, each at once; the low-resolution ones first, since the others say "here"."""
    leaves = sorted({path.parent for path in staged.rglob("*.png")}, key=lambda path: (path.name.endswith("HR"), path))
    names = [leaf.relative_to(staged).as_posix() for leaf in leaves]
    for leaf, name in zip(leaves, names, strict=True):
        target = folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            leaf.rename(target)
    return names
