"""Damaged and hostile files end in a picture or in one line of InputError, whatever was done to them."""

import io
import os
from functools import cache
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from liif_cli.errors import InputError
from liif_cli.images import read, read_animation

# LIIF_TEST_EXAMPLES=5000 looks longer.
EXAMPLES = int(os.environ.get("LIIF_TEST_EXAMPLES", "150"))


@cache
def seeds() -> tuple[bytes, ...]:
    """One small file of every kind that takes another way through the readers."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    rgba, rgb = Image.fromarray(noise), Image.fromarray(noise[..., :3].copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8769] = {0xA002: 10, 0x9003: "2020:01:01 00:00:00"}
    carried: dict[str, Any] = {"exif": exif.tobytes()}
    saved: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "PNG", carried),
        (rgba, "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (rgb, "JPEG", carried),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgba, "WEBP", carried),
        (rgb, "WEBP", {"lossless": True}),
        (rgb, "TIFF", carried),
        (rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (rgb.convert("CMYK"), "TIFF", {"compression": "tiff_lzw"}),
        (rgb.convert("P"), "GIF", {}),
        (rgb, "GIF", {"save_all": True, "append_images": [rgba.convert("RGB"), rgb.rotate(90)]}),
        (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        (rgb, "BMP", {}),
        (rgb, "AVIF", carried),
    ]
    files = []
    for image, format, options in saved:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        files.append(buffer.getvalue())
    for options in ({"photometric": "rgb"}, {"photometric": "rgb", "compression": "zlib", "bigtiff": True}):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, noise[..., :3].astype(np.uint16) * 257, **options)
        files.append(buffer.getvalue())
    return tuple(files)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(range(len(seeds()))).map(lambda index: seeds()[index])))
    for _ in range(draw(st.integers(0, 6))):
        # Headers decide most: half of the changes fall into the first bytes.
        last = len(content) - 1
        at = draw(st.integers(0, min(64, last)) | st.integers(0, last))
        content[at] = draw(st.integers(0, 255) | st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    if draw(st.booleans()):
        start = draw(st.integers(1, len(content)))
        content[start : start + draw(st.integers(0, 40))] = draw(st.binary(max_size=20))
    if draw(st.integers(0, 3)) == 0:
        del content[draw(st.integers(1, len(content))) :]
    return bytes(content)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="LIIF_TEST_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(content=mutated())
def test_mutated_files_are_read_or_refused(content: bytes) -> None:
    for reader in (read, read_animation):
        try:
            reader(content, max_pixels=1_000_000)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017  success is as good


MOVING = (11, 12)


@pytest.mark.parametrize("index", range(17))
def test_the_files_they_are_made_of_are_read(index: int) -> None:
    assert min(read(seeds()[index]).size) == 10


@pytest.mark.parametrize("index", range(17))
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.8])
def test_a_file_cut_short_is_refused_not_filled_with_grey(index: int, share: float) -> None:
    content = seeds()[index][: max(1, int(len(seeds()[index]) * share))]
    with pytest.raises(InputError):
        # Of an animation cut short the first frame may be whole.
        read(content) if index not in MOVING else read_animation(content)


def test_readers_say_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(1)
    for content in seeds():
        for _ in range(6):
            damaged = bytearray(content)
            for at in generator.integers(0, len(content), 5):
                damaged[at] = int(generator.integers(0, 256))
            try:
                read(bytes(damaged), max_pixels=1_000_000)
            except InputError:
                continue
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
