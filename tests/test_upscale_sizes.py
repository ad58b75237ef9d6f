"""Sizes are exact, whatever they are asked by, from one pixel to a factor of thirty."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import THOROUGH, TINY, Cli, photo, save
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from liif_cli.errors import UsageError
from liif_cli.sizing import output_size
from liif_cli.upscaler import load


def made(folder: Path) -> Image.Image:
    (path,) = [path for path in folder.iterdir() if path.stem.startswith("photo_")]
    with Image.open(path) as image:
        image.load()
        return image


@pytest.mark.parametrize(
    ("options", "expected"),  # of a picture 40 wide and 30 high
    [
        (["--scale", "2.7"], (108, 81)),
        (["--scale", "1", "-q"], (40, 30)),
        (["--scale", "0.5"], (20, 15)),
        (["--scale", "0.001"], (1, 1)),
        (["--scale", "2.0125"], (81, 60)),  # 80.5 is rounded up, 60.375 down
        (["--size", "100x77"], (100, 77)),
        (["--size", "7X111"], (7, 111)),
        (["--size", "50×60"], (50, 60)),
        (["--width", "99"], (99, 74)),
        (["--height", "99"], (132, 99)),
        (["--longest", "400"], (400, 300)),
        (["--megapixels", "0.03"], (200, 150)),
        (["--box", "10,5,20,25", "--scale", "3"], (30, 60)),
        (["--box", "10,5,20,25", "--longest", "50"], (25, 50)),
        (["--box", "0.5,0.5,2.5,1.5", "--size", "64x32"], (64, 32)),
    ],
)
def test_a_picture_has_exactly_the_size_asked_for(
    upscale: Cli, tmp_path: Path, options: list[str], expected: tuple[int, int]
) -> None:
    save(tmp_path / "photo.png", photo(30, 40))
    ran = upscale("photo.png", *options)
    assert (ran.code, ran.err) == (0, "")
    assert made(tmp_path).size == expected


def test_thirty_times_larger(upscale: Cli, tmp_path: Path) -> None:
    side = 64 if THOROUGH else 16
    save(tmp_path / "photo.png", photo(side, side))
    assert upscale("photo.png", "--scale", "30").code == 0
    assert made(tmp_path).size == (30 * side, 30 * side)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("scale", ["0.5", "1", "5.5"])
@pytest.mark.parametrize("channels", [1, 4])
def test_single_pixels_and_lines(
    upscale: Cli, tmp_path: Path, size: tuple[int, int], scale: str, channels: int
) -> None:
    save(tmp_path / "photo.png", photo(*size, channels))
    assert upscale("photo.png", "--scale", scale).code == 0
    image = made(tmp_path)
    assert image.size == tuple(max(1, int(side * float(scale) + 0.5)) for side in size[::-1])
    assert len(image.getbands()) == channels


def test_the_picture_is_turned_before_it_is_measured(upscale: Cli, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "photo.jpg", photo(30, 40), exif=exif)
    assert upscale("photo.jpg", "--width", "60").code == 0
    assert made(tmp_path).size == (60, 80)


def test_the_box_is_that_part_of_the_whole(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png", photo(30, 40))
    upscale("photo.png", "--scale", "4", "-o", "whole.png", "--precision", "float32")
    upscale("photo.png", "--scale", "4", "--box", "8,4,24,20", "-o", "part.png", "--precision", "float32")
    whole, part = (np.asarray(Image.open(name)).astype(int) for name in ("whole.png", "part.png"))
    assert np.abs(whole[16:80, 32:96] - part).max() <= 1


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        (["--scale", "4"], (41, 82)),
        (["--width", "82"], (41, 82)),
        (["--longest", "41"], (21, 41)),
        (["--height", "1000"], (1000, 2000)),
    ],
)
def test_a_box_with_fractions_keeps_its_proportions(
    upscale: Cli, tmp_path: Path, asked: list[str], size: tuple[int, int]
) -> None:
    save(tmp_path / "photo.png", photo(30, 40))
    assert upscale("photo.png", *asked, "--box", "8.1,4.05,28.6,14.3", "-o", "part.png").code == 0
    with Image.open("part.png") as image:
        assert image.size[::-1] == size


@given(side=st.integers(1, 100_000), text=st.decimals("0.001", "99", places=3))
def test_a_factor_means_the_decimal_number_that_was_written(side: int, text: object) -> None:
    exact = Fraction(str(text)) * side + Fraction(1, 2)
    assert output_size((side, 1), float(str(text)))[0] == max(1, exact.numerator // exact.denominator)


def test_halves_are_rounded_up_where_binary_fractions_fall_short() -> None:
    assert 100 * 1.005 < 100.5
    assert output_size((100, 10), 1.005) == (101, 10)
    assert output_size((10, 10), 2.7) == (27, 27)


def test_the_ensemble_paints_another_picture_of_the_same_size(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    upscale("photo.png", "--scale", "2", "-o", "one.png")
    assert upscale("photo.png", "--scale", "2", "-o", "eight.png", "--ensemble").code == 0
    one, eight = (np.asarray(Image.open(name)).astype(int) for name in ("one.png", "eight.png"))
    assert one.shape == eight.shape
    assert not np.array_equal(one, eight)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float16, "torch"])
def test_a_window_may_be_an_array_of_any_numbers(kind) -> None:
    upscaler = load(TINY, device="cpu", precision="float32")
    image, box = photo(60, 70), (3, 2, 30, 31)
    window = torch.tensor(box) if kind == "torch" else np.array(box, kind)
    for scale in (2, 5):
        assert np.array_equal(
            upscaler.upscale(image, scale=scale, box=window), upscaler.upscale(image, scale=scale, box=box)
        )
    for wrong in ((0, 0, 5), 5, ("a", 0, 2, 2)):
        with pytest.raises(UsageError, match="a box is four numbers"):
            upscaler.upscale(image, scale=2, box=wrong)
