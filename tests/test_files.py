"""A file appears whole under its name, or not at all."""

import errno
import os
import sys
from pathlib import Path

import pytest

from liif_cli.errors import OutputError
from liif_cli.files import atomic_path, cannot_write, with_home


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_only_at_the_end(tmp_path: Path) -> None:
    final = tmp_path / "a.bin"
    with atomic_path(final) as temporary:
        temporary.write_bytes(b"half")
        assert not final.exists()
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".a.bin.")
        assert temporary.suffix == ".part"
        temporary.write_bytes(b"whole")
    assert final.read_bytes() == b"whole"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, failure: type[BaseException]) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"half")
            raise failure

    with pytest.raises(failure):
        write()
    assert names(tmp_path) == []


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    final = tmp_path / "a.bin"
    final.write_bytes(b"old")

    def write() -> None:
        with atomic_path(final, overwrite=True) as temporary:
            temporary.write_bytes(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert final.read_bytes() == b"old"


def test_an_existing_file_is_replaced_only_when_told(tmp_path: Path) -> None:
    final = tmp_path / "a.bin"
    final.write_bytes(b"old")
    with pytest.raises(OutputError, match="--overwrite"), atomic_path(final):
        pytest.fail("the block must not run")
    with atomic_path(final, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert final.read_bytes() == b"new"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_came_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    final = tmp_path / "a.bin"
    with pytest.raises(OutputError, match="--overwrite"), atomic_path(final):
        final.write_bytes(b"other")
    assert final.read_bytes() == b"other"
    assert names(tmp_path) == ["a.bin"]


def test_file_systems_without_hard_links_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with atomic_path(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"whole")
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.skipif(sys.platform == "win32", reason="no umask")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"whole")
    finally:
        os.umask(old)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "a.bin"
    link = tmp_path / "link.bin"
    link.symlink_to(real)
    with atomic_path(link) as temporary:
        temporary.write_bytes(b"whole")
    assert link.is_symlink()
    assert real.read_bytes() == b"whole"


@pytest.mark.parametrize("letter", ["ä", "\u732b"])
def test_a_very_long_name_still_fits(tmp_path: Path, letter: str) -> None:
    final = tmp_path / (letter * (240 // len(letter.encode())) + ".bin")
    with atomic_path(final) as temporary:
        temporary.name.encode()  # whole letters only: not every file system takes half ones
        temporary.write_bytes(b"whole")
    assert final.exists()


def test_a_home_that_nobody_has_is_a_name_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert with_home("~/a") == Path("/home/me/a")
    assert with_home("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing/a.bin", "does not exist"), ("folder", "is a folder"), ("x" * 300, "too long"), ("pipe", "ordinary")],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    if name == "pipe":
        os.mkfifo(tmp_path / name)
    with pytest.raises(OutputError, match=message) as caught, atomic_path(tmp_path / name, overwrite=True):
        pytest.fail("the block must not run")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="this user may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission"), atomic_path(tmp_path / "a.bin"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.EFBIG, "too large"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_system_errors_name_the_file_and_the_remedy(code: int, words: str) -> None:
    error = cannot_write(Path("a.png"), OSError(code, os.strerror(code)))
    assert "a.png" in str(error)
    assert words in str(error)
    assert error.exit_code == 5


def test_a_name_that_no_file_can_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), atomic_path(tmp_path / "a\0b"):
        pass
