"""Damaged and hostile files, hundreds of them, through the command line: a picture or one line, and soon."""

import functools
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import THOROUGH, Cli, photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from liif_cli import checkpoint
from liif_cli.images import read, read_animation

EXAMPLES = 500 if THOROUGH else 60
EXTENSIONS = ("png", "jpg", "webp", "tif", "gif", "bmp", "avif", "apng", "heic", "jpeg", "dib")
OUTPUTS = ("", "png", "jpg", "webp", "tif", "gif", "bmp", "avif", "dzi")
LIMIT_S = 20


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Small files of every kind that takes its own way through the readers and writers."""
    rgba = Image.fromarray(photo(14, 11, 4))
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    deep = Image.fromarray(photo(14, 11, 1)[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    moving = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)], "duration": 80}
    saved: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "PNG", {"exif": exif.tobytes()}),
        (rgba, "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (deep, "PNG", {}),
        (grey.convert("1"), "PNG", {}),
        (rgb, "PNG", moving),
        (rgb, "JPEG", {"exif": exif.tobytes(), "dpi": (300, 300)}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgba, "WEBP", {"lossless": True}),
        (rgb, "WEBP", moving),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (deep, "TIFF", {}),
        (rgb.convert("CMYK"), "TIFF", {}),
        (rgb, "GIF", moving),
        (rgb, "BMP", {}),
        (rgb, "AVIF", {}),
    ]
    files = []
    for image, format, options in saved:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        files.append(buffer.getvalue())
    return tuple(files)


HEADERS = (
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"RIFF\xff\xff\xff\xffWEBP",
    b"II*\0",
    b"MM\0+",
    b"GIF89a",
    b"BM",
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 9)) == 0:  # no picture at all, but for its first bytes
        return draw(st.sampled_from(HEADERS)) + draw(st.binary(max_size=200))
    content = bytearray(seeds()[draw(st.integers(0, len(seeds()) - 1))])
    for _ in range(draw(st.integers(0, 5))):
        last = len(content) - 1
        at = draw(st.integers(0, min(80, last)) | st.integers(0, last))
        change = draw(st.integers(0, 3))
        if change == 0:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif change == 1:
            content[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif change == 2:
            content[at : at + draw(st.integers(0, 30))] = draw(st.binary(max_size=20))
        else:
            content[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"]))
    if draw(st.integers(0, 3)) == 0:
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


def holds_whole_pictures_only(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not path.name.endswith(".part")
        if path.is_file() and path.suffix not in (".dzi", ".xml"):  # what describes a pyramid
            assert min(read(path).size) >= 1
            read_animation(path)


@pytest.fixture(scope="module", autouse=True)
def one_network() -> Iterator[None]:
    """The network is read from its file once, not for every example."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load", functools.cache(checkpoint.load))
        yield


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not THOROUGH,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    content=mutated(),
    extension=st.sampled_from(EXTENSIONS),
    wanted=st.sampled_from(OUTPUTS),
    size=st.sampled_from([("--scale", "1.5"), ("--width", "9"), ("--box", "1,1,6,7", "--scale", "2")]),
    how=st.sampled_from(["file", "stdin", "preview"]),
)
def test_any_file_is_upscaled_or_refused_in_one_line(
    upscale: Cli,
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    extension: str,
    wanted: str,
    size: tuple[str, ...],
    how: str,
) -> None:
    folder = tmp_path_factory.mktemp("hostile", numbered=True)
    os.chdir(folder)
    Path(f"given.{extension}").write_bytes(content)
    arguments: list[object] = [*size, "-o", "out/", "--max-pixels", "100000"]
    arguments += ["--format", wanted] if wanted else []
    began = time.monotonic()
    if how == "stdin":
        ran = upscale("-", *arguments, stdin=content)
    else:
        ran = upscale(f"given.{extension}", *arguments, *(["--dry-run"] if how == "preview" else []))
    assert time.monotonic() - began < LIMIT_S
    assert ran.code in (0, 1, 5)
    assert "Traceback" not in ran.err
    if ran.code:
        assert ran.out == ""
        (line,) = ran.err.splitlines()
        assert line.startswith("liif: ")
        assert line.isprintable()
    else:
        assert ran.err == ""
        assert len(ran.out.splitlines()) == 1
    made = list(folder.glob("out/*"))
    assert bool(made) == (ran.code == 0 and how != "preview")
    holds_whole_pictures_only(folder / "out")


@pytest.mark.parametrize("index", range(17))
def test_the_files_they_are_made_of_are_upscaled(upscale: Cli, tmp_path: Path, index: int) -> None:
    ran = upscale("-", "--scale", "2", "-o", "out/", stdin=seeds()[index])
    assert (ran.code, ran.err) == (0, "")
    holds_whole_pictures_only(tmp_path / "out")
