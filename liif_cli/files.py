"""Files that appear whole or not at all.

A result is written under a hidden temporary name, `.NAME.XXXXXXXX.part`, in the folder it belongs to, flushed to the
disk and then renamed. An error or an interruption removes the temporary file; a kill leaves at most that file, and
never anything under the final name.
"""

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from liif_cli.errors import ExistsError, OutputError

# A name may be 255 bytes long on the usual file systems; what the temporary name adds must fit as well.
_LONGEST_STEM_BYTES = 200
# What only writing meets, so that it is about the file that is being written.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_ROOM = FULL | {errno.EROFS}


@contextlib.contextmanager
def atomic_path(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty temporary file beside `final`, which becomes `final` when the block ends without an error.

    The block writes to the path it is given, by name or through a handle that it closes itself. The finished file has
    the permissions that the process's umask grants. A symbolic link is followed: the file it points to is replaced.

    Raises OutputError when the folder is missing or not writable, when `final` exists and `overwrite` is false (checked
    before the block and again, without a race, at the end), when it is no ordinary file, or when the disk is full, also
    where the block met that. Whatever else the block raises passes through untouched.
    """
    target = check_target(final, overwrite=overwrite)
    temporary = temporary_beside(target)
    try:
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except (OSError, ValueError) as error:  # the latter of a name that holds a NUL
            raise cannot_write(final, error) from error
        try:
            yield temporary
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise cannot_write(final, error) from error
            raise
        try:
            flush_to_disk(temporary)
            move_into_place(temporary, target, overwrite=overwrite)
        except OSError as error:
            raise cannot_write(final, error) from error
    finally:
        # After success the name is already gone. An unremovable leftover must not hide the error on its way out.
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)


def is_file(path: Path) -> bool:
    """Whether there is an ordinary file. What may not be looked at, and a name that no file can have, are no error
    here, as they are for `Path`."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether there is a folder; see `is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


def walk(top: Path, onerror: Callable[[OSError], object] | None = None) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As `os.walk`, in the order of names, with links to folders followed after the folders beside them; what was gone
    through under one name is left out under another."""
    met: set[Path] = set()
    for folder, folders, names in os.walk(top, onerror=onerror, followlinks=True):
        here = Path(folder)
        if (real := here.resolve()) in met:
            folders.clear()
            continue
        met.add(real)
        folders.sort(key=lambda name: ((here / name).is_symlink(), name))
        yield here, folders, sorted(names)


def check_target(final: Path, *, overwrite: bool) -> Path:
    """Return where a file named `final` really goes, links followed; raises OutputError when it cannot go there."""
    try:
        target = final.resolve() if final.is_symlink() else final
        if not target.parent.is_dir():
            if target.parent.exists():
                raise OutputError(f"{final}: {target.parent} is a file, not a folder; name another one")
            raise OutputError(f"{final}: the folder {target.parent} does not exist; create it first")
        if not os.access(target.parent, os.W_OK):
            raise OutputError(f"{final}: no permission to write in the folder {target.parent}")
        mode = target.stat().st_mode if target.exists() else None
    except (OSError, ValueError, RuntimeError) as error:
        raise cannot_write(final, error) from error
    if mode is None:
        return target
    if stat.S_ISDIR(mode):
        raise OutputError(f"{final}: is a folder; name a file")
    if not stat.S_ISREG(mode):
        # Renaming onto a device or a pipe would replace it by an ordinary file.
        raise OutputError(f"{final}: is not an ordinary file; name another one")
    if not overwrite:
        raise ExistsError(final)
    return target


def with_home(path: str | Path) -> Path:
    """A path whose ``~`` has become a home folder; as it is where nobody of that name is known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def temporary_beside(final: Path) -> Path:
    """Return an unused hidden name in the folder of `final`."""
    stem = os.fsencode(final.name)[:_LONGEST_STEM_BYTES].decode(sys.getfilesystemencoding(), "ignore")  # no half letter
    return final.with_name(f".{stem}.{secrets.token_hex(4)}.part")


def flush_to_disk(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk; raises OSError."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    # Windows flushes only what is open for writing; elsewhere folders open for reading alone.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and FUSE file systems know no fsync on a folder, or none at all.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def move_into_place(temporary: Path, final: Path, *, overwrite: bool) -> None:
    """Rename a file onto `final`; without `overwrite`, never onto something that came into being meanwhile."""
    if overwrite:
        temporary.replace(final)
    else:
        try:
            os.link(temporary, final)  # unlike a rename, a link never replaces
        except FileExistsError as error:
            raise ExistsError(final) from error
        except OSError:  # a file system without hard links: a short race is left, no more
            if final.exists():
                raise ExistsError(final) from None
            temporary.rename(final)
        else:
            temporary.unlink()
    # The rename itself is safe on the disk only with its folder; the content already is.
    with contextlib.suppress(OSError):
        flush_to_disk(final.parent)


def cannot_write(final: Path, error: BaseException) -> OutputError:
    """Turn what the system said while writing `final` into one line with a remedy."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{final}: the disk is full; free some space or name another folder")
    if code in (errno.EACCES, errno.EPERM):
        return OutputError(f"{final}: no permission to write here; name another folder")
    if code == errno.EROFS:
        return OutputError(f"{final}: the file system is read-only; name another folder")
    if code == errno.EFBIG:
        return OutputError(f"{final}: too large a file for this file system; name another folder or a smaller size")
    if code == errno.ENAMETOOLONG:
        return OutputError(f"{final}: the name is too long; shorten it")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
    return OutputError(f"{final}: cannot be written: {reason or type(error).__name__}")
