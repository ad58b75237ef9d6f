"""Whatever goes wrong is one clear line, the right exit code, and nothing half-written."""

import errno
import gc
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, Cli, photo, save
from PIL import Image, ImageCms, PngImagePlugin

from liif_cli import batch, checkpoint, jobs
from liif_cli.sizing import Sizing


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def a_text_file(path: Path) -> None:
    path.write_text("this is no picture")


def an_empty_file(path: Path) -> None:
    path.write_bytes(b"")


def a_jpeg_cut_short(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photo(60, 80)).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def a_png_with_a_flipped_bit(path: Path) -> None:
    save(path.with_suffix(".good.png"))
    content = bytearray(path.with_suffix(".good.png").read_bytes())
    path.with_suffix(".good.png").unlink()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def a_bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path, "PNG")


def an_empty_folder(path: Path) -> None:
    path.mkdir()


def a_folder_of_other_things(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("no picture")
    (path / ".hidden.png").write_bytes(b"")


def a_link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere.png")


def nothing(path: Path) -> None:
    pass


BAD_INPUTS: dict[Callable[[Path], None], str] = {
    nothing: "no such file",
    a_text_file: "is not a picture",
    an_empty_file: "is empty",
    a_jpeg_cut_short: "cut short",
    a_png_with_a_flipped_bit: "damaged",
    a_bomb: "million pixels",
    an_empty_folder: "no pictures in this folder; add -r",
    a_folder_of_other_things: "no pictures in this folder",
    a_link_to_nowhere: "no such file",
}


@pytest.mark.parametrize("make", BAD_INPUTS, ids=lambda make: make.__name__)
def test_a_bad_input_is_named_and_the_others_are_done(
    upscale: Cli, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "bad.png")
    save(tmp_path / "good.png")
    before = tree(tmp_path)
    ran = upscale("bad.png", "--scale", "2")
    assert ran.code == 1
    (line,) = ran.err.splitlines()
    assert line.startswith("liif: bad.png: ")
    assert BAD_INPUTS[make] in line
    assert tree(tmp_path) == before

    ran = upscale("bad.png", "good.png", "--scale", "2")
    assert ran.code == 1
    assert ran.err.splitlines() == [line, "liif: 2 pictures: 1 written, 1 failed (bad.png)"]
    assert tree(tmp_path) == before | {"good_x2.png"}


def test_names_that_no_file_can_have(upscale: Cli, tmp_path: Path) -> None:
    for name in ("x" * 300 + ".png", "x" * 5000 + ".png", "a\0b.png", "\udcff.png"):
        ran = upscale(name, "--scale", "2")
        assert ran.code == 1
        assert len(ran.err.splitlines()) == 1
    save(tmp_path / ("x" * 250 + ".png"))
    ran = upscale("x" * 250 + ".png", "--scale", "2")
    assert ran.code == 5
    assert "shorten" in ran.err
    for output in ("y" * 300, "y" * 300 + ".png", "y" * 5000 + "/a.png"):
        ran = upscale("x" * 250 + ".png", "--scale", "2", "-o", output)
        assert ran.code == 5
        assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scale", "0"], "--scale 0: must be above 0"),
        (["--scale", "-1"], "--scale -1: must be above 0"),
        (["--scale", "nan"], "--scale nan"),
        (["--scale", "inf"], "--scale inf"),
        (["--scale", "abc"], "'abc' is not a number"),
        (["--scale", "1e300"], "larger than any picture"),
        (["--size", "0x5"], "--size 0x5"),
        (["--size", "abc"], "--size 'abc': write it as width x height"),
        (["--size", "10"], "--size '10'"),
        (["--size", "9" * 5000 + "x1"], "--size"),
        (["--size", "²x2"], "--size"),
        (["--width", "0"], "--width 0"),
        (["--width", "1.5"], "'1.5' is not a whole number"),
        (["--height", "-3"], "--height -3"),
        (["--longest", "9" * 5000], "is not a whole number"),
        (["--longest", "99999999999"], "larger than any picture"),
        (["--megapixels", "0"], "--megapixels 0"),
        (["-q"], "the output needs a size; give one of --scale, --size"),
        (["--scale", "2", "--width", "3"], "--scale and --width contradict"),
        (["--scale", "2", "--box", "1,2,3"], "left,top,right,bottom"),
        (["--scale", "2", "--box", "a,b,c,d"], "left,top,right,bottom"),
        (["--scale", "2", "--box", "9,0,3,5"], "upside down"),
        (["--scale", "2", "--box", "0,5,5,5"], "is empty"),
        (["--scale", "2", "--box", "-1,0,5,5"], "--box"),
        (["--scale", "2", "--box", "nan,0,5,5"], "--box"),
        (["--scale", "2", "--box", "0,0,inf,5"], "--box"),
        (["--scale", "2", "--format", "xyz"], "xyz is no format"),
        (["--scale", "2", "-o", "out.xyz"], ".xyz is no format"),
        (["--scale", "2", "-o", "out.heic"], "HEIC can be read but not written"),
        (["--scale", "2", "-o", "out.png", "--format", "jpg"], "contradict"),
        (["--scale", "2", "-o", ""], "name a file or a folder"),
        (["--scale", "2", "-o", "photo.png/"], "is a file, and a folder is needed"),
        (["--scale", "2", "--quality", "0"], "--quality"),
        (["--scale", "2", "--quality", "90"], "--quality 90: PNG has no loss to choose"),
        (["--scale", "2", "--max-pixels", "0"], "--max-pixels"),
        (["--scale", "2", "--overwrite", "--skip-existing"], "contradict"),
        (["--scale", "2", "-q", "-v"], "contradict"),
        (["--scale", "2", "-o", "-", "--json"], "both want standard output"),
        (["--scale", "2", "-o", "-", "--format", "dzi"], "DeepZoom"),
        (["--scale", "2", "--device", "toaster"], "unknown device 'toaster'"),
        (["--scale", "2", "--precision", "int3"], "unknown precision 'int3'"),
        (["--scale", "2", "--memory", "lots"], "memory 'lots'"),
        (["--scale", "2", "--memory", "4"], "memory '4': is 4 bytes; write it as 4G"),
        (["--scale", "2", "--box=-5,0,10,10"], "begins outside of the picture"),
        (["--scale", "2", "--scal"], "--scal"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_2(upscale: Cli, tmp_path: Path, options: list[str], says: str) -> None:
    save(tmp_path / "photo.png")
    ran = upscale("photo.png", *options)
    assert ran.code == 2
    (line,) = ran.err.splitlines()
    assert line.startswith("liif: ")
    assert says in line
    assert ran.out == ""
    assert tree(tmp_path) == {"photo.png"}


def test_a_folder_without_pictures_is_that_with_and_without_a_quality(upscale: Cli, tmp_path: Path) -> None:
    for options in ([], ["--quality", "90"]):
        ran = upscale(".", "--scale", "2", *options)
        assert ran.code == 1
        assert "no pictures in this folder" in ran.err


def test_a_quality_is_taken_where_an_output_may_have_one(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    assert upscale("photo.png", "--scale", "2", "--quality", "80", "-o", "b.jpg").code == 0
    assert upscale("photo.png", "--scale", "2", "--quality", "80", "--format", "webp").code == 0
    for output in (["-o", "c.png"], ["-o", "-", "--format", "png"]):
        assert "PNG has no loss" in upscale("photo.png", "--scale", "2", "--quality", "80", *output).err


def test_nothing_to_upscale(upscale: Cli, tmp_path: Path) -> None:
    assert upscale().code == 2
    assert upscale("", "--scale", "2").code == 2
    (tmp_path / "list").write_text("\n\n")
    ran = upscale("--files-from", "list", "--scale", "2")
    assert (ran.code, ran.err) == (1, "liif: nothing to do: the list is empty\n")
    ran = upscale("--files-from", "missing", "--scale", "2")
    assert (ran.code, ran.err) == (1, "liif: --files-from missing: cannot be read: No such file or directory\n")
    ran = upscale("*.jpg", "--scale", "2")
    assert (ran.code, ran.err) == (1, "liif: *.jpg: no picture matches this pattern\n")


def test_a_box_outside_the_picture(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png", photo(24, 32))
    for options in ([], ["--dry-run"]):
        ran = upscale("photo.png", "--scale", "2", "--box", "0,0,33,10", *options)
        assert ran.code == 1
        assert ran.err == (
            "liif: photo.png: the box 0,0,33,10 (left, top, right, bottom) is not inside the picture of 32x24 pixels\n"
        )
    assert tree(tmp_path) == {"photo.png"}


class Malice:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch was_run",)


def malicious(path: Path) -> None:
    torch.save({"model": {"name": "liif", "args": {}, "sd": {}}, "extra": Malice()}, path)


def malicious_old(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": Malice()}))


def corrupt(path: Path) -> None:
    path.write_bytes(TINY.read_bytes()[:5000])


def text(path: Path) -> None:
    path.write_text("no network here")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "a")


def of_another_network(path: Path) -> None:
    torch.save({"model": {"name": "resnet", "args": {}, "sd": {"weight": torch.zeros(3)}}}, path)


def with_a_tensor_missing(path: Path) -> None:
    content = torch.load(TINY)
    content["model"]["sd"].popitem()
    torch.save(content, path)


def plain_state(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def damaged_safetensors(path: Path) -> None:
    model = checkpoint.read(TINY)
    checkpoint.write(path, model, overwrite=True)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "make",
    [malicious, malicious_old, corrupt, text, empty, archive, of_another_network, with_a_tensor_missing, plain_state,
     damaged_safetensors],
)  # fmt: skip
def test_a_bad_checkpoint_exits_3(cli: Cli, tmp_path: Path, make: Callable[[Path], None]) -> None:
    save(tmp_path / "photo.png")
    make(tmp_path / "bad.pth")
    ran = cli("upscale", "photo.png", "--scale", "2", "-m", "bad.pth")
    assert ran.code == 3
    (line,) = ran.err.splitlines()
    assert "bad.pth" in line or "resnet" in line
    assert tree(tmp_path) == {"photo.png", "bad.pth"}  # and "was_run" is not there


def test_an_unknown_model_exits_3(cli: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    for name in ("no-such-model", "no/such/file.pth", str(tmp_path)):
        ran = cli("upscale", "photo.png", "--scale", "2", "-m", name)
        assert ran.code == 3
        assert len(ran.err.splitlines()) == 1


def transparent() -> np.ndarray:
    return photo(12, 16, 4)


def deep(path: Path) -> None:
    Image.fromarray(photo(12, 16, 1)[..., 0].astype(np.uint16) * 257).save(path)


@pytest.mark.parametrize("extension", ["jpg", "bmp", "gif"])
def test_a_format_without_alpha_is_refused_and_others_are_named(upscale: Cli, tmp_path: Path, extension: str) -> None:
    save(tmp_path / "photo.png", transparent())
    for options in ([], ["--dry-run"]):
        ran = upscale("photo.png", "--scale", "2", "--format", extension, *options)
        assert ran.code == 5
        (line,) = ran.err.splitlines()
        assert line.startswith(f"liif: photo_x2.{extension}: ")
        assert "transparency" in line
        assert ".png" in line
    assert tree(tmp_path) == {"photo.png"}


@pytest.mark.parametrize("extension", ["jpg", "webp", "avif", "gif", "bmp"])
def test_a_format_without_16_bits_is_refused(upscale: Cli, tmp_path: Path, extension: str) -> None:
    deep(tmp_path / "photo.png")
    for options in ([], ["--dry-run"]):
        ran = upscale("photo.png", "--scale", "2", "-o", f"big.{extension}", *options)
        assert ran.code == 5
        assert "16 bits" in ran.err
    assert tree(tmp_path) == {"photo.png"}


def test_a_picture_larger_than_its_format_can_hold(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    for options in ([], ["--dry-run"]):
        for extension, width in (("jpg", 70_000), ("webp", 17_000), ("png", 2**31)):
            ran = upscale("photo.png", "--size", f"{width}x1", "-o", f"big.{extension}", *options)
            assert ran.code == 5
            assert "pixels per side" in ran.err
    assert upscale("photo.png", "--scale", "30000").code == 5  # no disk holds that
    assert tree(tmp_path) == {"photo.png"}


def test_what_standard_output_cannot_be_is_known_to_the_preview(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "holes.png", transparent())
    save(tmp_path / "photo.png")
    for options in ([], ["--dry-run"]):
        ran = upscale("holes.png", "--scale", "2", "-o", "-", "--format", "jpg", *options)
        assert (ran.code, ran.raw) == (5, b"")
        assert ran.err.startswith("liif: standard output: JPEG cannot hold transparency")
        ran = upscale("-", "--scale", "2", "--quality", "80", *options, stdin=(tmp_path / "photo.png").read_bytes())
        assert (ran.code, ran.raw) == (2, b"")
        assert "PNG has no loss to choose" in ran.err


def test_what_a_picture_carries_is_known_to_the_preview(upscale: Cli, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x>" + 70_000 * "a" + "</x>")
    save(tmp_path / "words.png", pnginfo=info)
    for options in (["--dry-run"], []):
        ran = upscale("words.png", "--scale", "2", "--format", "jpg", *options)
        assert ran.code == 5
        assert "bytes of XMP" in ran.err
    save(tmp_path / "there.png")
    assert upscale("there.png", "--scale", "2").code == 0
    (tmp_path / "there.png").write_text("no picture")
    for options in (["--dry-run"], []):
        ran = upscale("there.png", "--scale", "2", "--skip-existing", *options)
        assert (ran.code, ran.out) == (0, "there_x2.png  already exists, skipped\n")


def test_a_background_that_a_grey_profile_forbids_is_known_to_the_preview(upscale: Cli, tmp_path: Path) -> None:
    grey = np.dstack([photo(8, 8)[..., 0], np.full((8, 8), 128, np.uint8)])
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"GRAY"
    save(tmp_path / "holes.png", grey, icc_profile=bytes(profile))
    for options in (["--dry-run"], []):
        ran = upscale("holes.png", "--scale", "2", "--background", "red", *options)
        assert ran.code == 1
        assert "takes a grey --background" in ran.err
    assert upscale("holes.png", "--scale", "2", "--background", "white", "--dry-run").code == 0


def test_a_preview_knows_that_folders_in_folders_are_made(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    for options in (["--dry-run"], []):
        assert upscale("photo.png", "--scale", "2", "-o", "new/deep/", *options).code == 0
    assert tree(tmp_path) == {"photo.png", "new", "new/deep", "new/deep/photo_x2.png"}


def test_an_output_folder_that_is_missing(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    for options in ([], ["--dry-run"]):
        ran = upscale("photo.png", "--scale", "2", "-o", "missing/big.png", *options)
        assert ran.code == 5
        assert "the folder missing does not exist" in ran.err
    (tmp_path / "file").write_text("")
    ran = upscale("photo.png", "--scale", "2", "-o", "file/inner/")
    assert ran.code == 5
    assert "cannot be made" in ran.err
    assert tree(tmp_path) == {"photo.png", "file"}


def test_an_output_that_is_a_folder(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    (tmp_path / "photo_x2.png").mkdir()
    for options in ([], ["--overwrite"], ["--skip-existing"]):
        ran = upscale("photo.png", "--scale", "2", *options)
        assert ran.code == 5
        assert "is a folder" in ran.err


def test_outputs_are_not_replaced_unless_asked(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    output = tmp_path / "photo_x2.png"
    output.write_bytes(b"precious")
    ran = upscale("photo.png", "--scale", "2")
    assert ran.code == 5
    remedy = "add --skip-existing to leave it, or --overwrite to replace it"
    assert ran.err == f"liif: photo_x2.png: already exists; {remedy}\n"
    assert output.read_bytes() == b"precious"
    assert upscale("photo.png", "--scale", "2", "--skip-existing").code == 0
    assert output.read_bytes() == b"precious"
    assert upscale("photo.png", "--scale", "2", "--overwrite").code == 0
    with Image.open(output) as image:
        assert image.size == (64, 48)


def test_an_output_that_leads_to_its_input_is_refused(upscale: Cli, tmp_path: Path) -> None:
    content = save(tmp_path / "photo.png").read_bytes()
    (tmp_path / "photo_x2.png").symlink_to("photo.png")
    for more in ([], ["--dry-run"]):
        ran = upscale("photo.png", "--scale", "2", "--overwrite", *more)
        assert (ran.code, ran.err) == (
            5,
            "liif: photo_x2.png: leads to the input, photo.png; name another output with -o\n",
        )
    assert (tmp_path / "photo.png").read_bytes() == content
    here = f"../{tmp_path.name}/photo.png"
    assert upscale(here, "--scale", "2", "-o", "photo.png", "--overwrite").code == 0  # the very name, spelt otherwise


def test_where_no_folder_can_be_seen_a_preview_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "photo.png")
    monkeypatch.setattr(jobs, "is_folder", lambda path: False)
    options = jobs.Options(Sizing(scale=2), output=tmp_path / "a" / "b", into_folder=True)
    (job,) = jobs.plan_jobs([jobs.Source(tmp_path / "photo.png")], options).jobs
    assert jobs.preview(job, options).output_size == (48, 64)  # it ends; what is wrong is found in the writing


def test_pixels_that_are_more_than_the_memory_are_not_read(
    upscale: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30_000, 20_000)).save(tmp_path / "large.png")
    ran = upscale("large.png", "--width", "100", "--memory", "1G", "--max-pixels", "1000000000")
    assert ran.code == 4
    assert ran.err == "liif: large.png: to read it takes 5150 MiB, and --memory allows 1024 MiB; raise it\n"
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 3000, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "veil.png", compress_level=1)
    monkeypatch.setattr("liif_cli.batch.within_process", lambda memory_bytes: 200 * 2**20)
    save(tmp_path / "wide.png", photo(300, 15_000))
    for extension, words in (
        ("tif", "writing it as TIFF takes about 236 MiB"),
        ("avif", "writing it as AVIF takes about"),
    ):
        ran = upscale(
            "wide.png", "--scale", "4" if extension == "tif" else "1.2", "--format", extension, "--memory", "1G"
        )
        assert ran.code == 4
        assert words in ran.err
    ran = upscale("veil.png", "--width", "100", "--memory", "1G")
    assert ran.code == 4
    assert "veil.png: needs 241 MiB beside its pixels, and --memory leaves 187 MiB; raise it" in ran.err


def test_what_does_not_fit_into_memory_exits_4(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    ran = upscale("photo.png", "--scale", "2", "--memory", "1M")
    assert ran.code == 4
    assert len(ran.err.splitlines()) == 1
    assert "--memory" in ran.err
    assert tree(tmp_path) == {"photo.png"}


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write to, not even root."""
    folder = tmp_path / "closed"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    if subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False).returncode != 0:
        pytest.skip("root can write everywhere here: chattr +i is not supported by this file system")
    yield folder
    subprocess.run(["chattr", "-i", str(folder)], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of folders are another matter there")
def test_a_folder_that_cannot_be_written_to(upscale: Cli, tmp_path: Path, read_only: Path) -> None:
    save(tmp_path / "photo.png")
    for output in ("closed/big.png", "closed", "closed/new/"):
        ran = upscale("photo.png", "--scale", "2", "-o", output)
        assert ran.code == 5
        (line,) = ran.err.splitlines()
        assert "ermi" in line
    assert list(read_only.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small disk can only be mounted by root, outside containers that forbid it")
    yield folder
    gc.collect()  # what failed may still hold a file open
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["big.png", "big.tif", "big.jpg", "big.dzi"])
@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_exits_5_and_leaves_nothing(
    upscale: Cli, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, name: str, foreseen: bool
) -> None:
    if not foreseen:  # somebody else fills the disk after it was looked at
        monkeypatch.setattr("liif_cli.images.formats.shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 40))
    size = "240x240" if name in ("big.png", "big.tif") else "1600x600"
    rng = np.random.default_rng(0)
    save(tmp_path / "noise.png", rng.integers(0, 256, (60, 60, 3), dtype=np.uint8))
    ran = upscale("noise.png", "--size", size, "-o", small_disk / name)
    assert ran.code == 5
    (line,) = ran.err.splitlines()
    assert "disk" in line
    assert list(small_disk.iterdir()) == []


def test_a_full_folder_of_temporary_files_is_named_with_its_remedy(
    upscale: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liif_cli.images.formats.shutil.disk_usage", lambda path: SimpleNamespace(free=7))
    save(tmp_path / "photo.png")
    ran = upscale("photo.png", "--scale", "2", "-o", "-")
    assert ran.code == 5
    assert "standard output: about " in ran.err
    assert f"; it waits to be whole in {tempfile.gettempdir()}, and TMPDIR names another folder\n" in ran.err


def test_a_disk_that_fills_up_in_the_middle(upscale: Cli, tmp_path: Path, small_disk: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        save(tmp_path / f"in/{number}.png", rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    ran = upscale("in", "--scale", "2.5", "-o", small_disk)
    assert ran.code == 1  # some were written
    made = sorted(small_disk.iterdir())
    assert 0 < len(made) < 6
    for path in made:
        with Image.open(path) as image:
            image.load()
    assert ran.err.count("free some space") == 6 - len(made)
    assert f"{len(made)} written, {6 - len(made)} failed" in ran.err
    # Once there is room, the rest is done.
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert upscale("in", "--scale", "2.5", "-o", small_disk, "--skip-existing").code == 0
    assert len(list(small_disk.iterdir())) == 6


def test_fail_fast_stops_at_the_first(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    a_text_file(tmp_path / "b.png")
    for name in "cdef":
        save(tmp_path / f"{name}.png")
    ran = upscale(*(f"{name}.png" for name in "abcdef"), "--scale", "2", "--fail-fast")
    assert ran.code == 1
    assert tree(tmp_path) >= {"a_x2.png"}
    assert "c_x2.png" not in tree(tmp_path)
    assert "6 pictures: 1 written, 1 failed, 4 not tried (b.png)" in ran.err


def test_the_exit_code_tells_the_kind_of_failure(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", transparent())
    assert upscale("a.png", "b.png", "--scale", "2", "--format", "jpg").code == 1  # some
    assert upscale("b.png", "--scale", "2", "--format", "jpg").code == 5
    assert upscale("c.png", "b.png", "--scale", "3", "--format", "jpg").code == 1  # of two kinds


def test_verbose_adds_the_traceback(upscale: Cli, tmp_path: Path) -> None:
    a_text_file(tmp_path / "bad.png")
    assert "Traceback" not in upscale("bad.png", "--scale", "2").err
    assert "Traceback" in upscale("bad.png", "--scale", "2", "-v").err


def test_standard_input_that_is_no_picture(upscale: Cli) -> None:
    for content, says in ((b"", "is empty"), (b"text", "is not a picture")):
        ran = upscale("-", "--scale", "2", stdin=content)
        assert ran.code == 1
        assert ran.err.startswith("liif: standard input: ")
        assert says in ran.err
        assert ran.raw == b""


def test_a_picture_that_standard_output_cannot_be(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png", transparent())
    ran = upscale("photo.png", "--scale", "2", "-o", "-", "--format", "jpg")
    assert ran.code == 5
    assert ran.err.startswith("liif: standard output: JPEG cannot hold transparency")
    assert ran.raw == b""


def test_without_standard_error_nothing_is_said_into_the_picture(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    command = f"{sys.executable} -m liif_cli upscale a.png missing.png --scale 2 --json -m {TINY}"
    for redirected in ("2>&-", "2>/dev/full"):
        if redirected.endswith("full") and not Path("/dev/full").exists():
            continue
        run = subprocess.run(f"{command} --overwrite {redirected}", shell=True, cwd=tmp_path, capture_output=True)
        assert run.returncode == 1
        ends = [json.loads(line)["exit_code"] for line in run.stdout.splitlines()]
        assert ends == [None, 1]
        assert (tmp_path / "a_x2.png").exists()


def test_colours_asked_for_in_logs_draw_no_bars(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    run = subprocess.run(
        [sys.executable, "-m", "liif_cli", "upscale", "a.png", "--scale", "2", "-m", str(TINY)],
        env={**os.environ, "FORCE_COLOR": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_what_another_program_wrote_meanwhile_is_skipped_where_that_is_asked(
    upscale: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png")
    check = batch._Painting._check

    def meanwhile(self: batch._Painting, host_bytes: int) -> None:
        save(tmp_path / "a_x2.png")
        check(self, host_bytes)

    monkeypatch.setattr(batch._Painting, "_check", meanwhile)
    ran = upscale("a.png", "--scale", "2", "--skip-existing")
    assert (ran.code, ran.out) == (0, "a_x2.png  already exists, skipped\n")
    (tmp_path / "a_x2.png").unlink()
    assert upscale("a.png", "--scale", "2").code == 5


def test_without_a_folder_for_temporary_files_it_is_one_line(
    upscale: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    save(tmp_path / "a.png")
    monkeypatch.setattr(tempfile, "gettempdir", none)
    for arguments in (["--dry-run"], []):
        ran = upscale("a.png", "--scale", "2", "-o", "-", *arguments)
        assert (ran.code, ran.raw) == (5, b"")
        assert ran.err.endswith("name one by the environment variable TMPDIR\n")


def test_a_preview_knows_a_file_where_a_folder_should_be(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "file").touch()
    for arguments in (["--dry-run"], []):
        ran = upscale("a.png", "--scale", "2", "-o", "file/below/", *arguments)
        assert ran.code == 5
        assert "folder cannot be made" in ran.err
