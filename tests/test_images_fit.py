"""What is done to a picture so that it fits its file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli, photo, save

from liif_cli.errors import InputError
from liif_cli.images import Picture, fitted, format_of, from_array

PNG, JPEG = format_of(Path("a.png")), format_of(Path("a.jpg"))


def with_alpha(alpha: int | np.ndarray, channels: int = 4, depth: int = 8) -> Picture:
    pixels = photo(300, 20, channels).astype(np.uint8)  # more rows than one block
    pixels[..., -1] = alpha
    return from_array(pixels if depth == 8 else pixels.astype(np.uint16) * 257)


@pytest.mark.parametrize("depth", [8, 16])
def test_alpha_that_says_nothing_goes_where_there_is_no_place_for_it(depth: int) -> None:
    opaque = with_alpha(255, depth=depth)
    assert np.array_equal(fitted(opaque, JPEG).pixels, opaque.colour)
    assert fitted(opaque, PNG) is opaque
    half = with_alpha(128, depth=depth)
    assert fitted(half, JPEG) is half  # to be refused


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("background", [(255, 255, 255), (250, 100, 0)])
def test_a_background_shows_through(channels: int, depth: int, background: tuple[int, int, int]) -> None:
    alpha = np.arange(300, dtype=np.uint16)[:, None].clip(0, 255)
    picture = with_alpha(alpha, channels, depth)
    made = fitted(picture, PNG, background=background).pixels
    greatest, share = (255, 65535)[depth == 16], alpha[..., None] / 255
    expected = picture.colour * share + np.array(background) * (greatest / 255) * (1 - share)
    expected = expected[..., :1] if channels == 2 and background == (255, 255, 255) else expected
    assert made.shape == expected.shape
    assert made.dtype == picture.pixels.dtype
    assert np.abs(made - expected).max() <= 0.51


def test_a_grey_profile_does_not_describe_a_coloured_background() -> None:
    profiled = replace(with_alpha(128, channels=2), icc=(220).to_bytes(4, "big") + bytes(12) + b"GRAY" + bytes(200))
    assert fitted(profiled, PNG, background=(9, 9, 9)).icc == profiled.icc
    with pytest.raises(InputError, match="a grey --background"):
        fitted(profiled, PNG, background=(9, 9, 8))


def test_depths_go_there_and_back() -> None:
    picture = from_array(photo(300, 20))
    deep = fitted(picture, PNG, depth=16)
    assert deep.depth == 16
    assert np.array_equal(deep.pixels, picture.pixels.astype(int) * 257)
    assert np.array_equal(fitted(deep, PNG, depth=8).pixels, picture.pixels)
    ramp = from_array(np.arange(65536, dtype=np.uint16).reshape(256, 256))
    expected = np.floor(np.arange(65536) / 257 + 0.5).reshape(256, 256, 1)
    assert np.array_equal(fitted(ramp, PNG, depth=8).pixels, expected)


def test_the_command_line_fits_pictures(upscale: Cli, tmp_path: Path) -> None:
    opaque, clear = photo(9, 12, 4), photo(9, 12, 4)
    opaque[..., 3], clear[..., 3] = 255, 0
    save(tmp_path / "opaque.png", opaque)
    save(tmp_path / "clear.png", clear)
    for options in (["--dry-run"], []):
        assert upscale("opaque.png", "--scale", "2", "--format", "jpg", *options).code == 0
    refused = upscale("clear.png", "--scale", "2", "--format", "jpg")
    assert refused.code == 5
    assert "or --background white" in refused.err
    assert upscale("clear.png", "--scale", "2", "--format", "jpg", "--background", "#ff8000").code == 0
    save(tmp_path / "solid.png", np.full((9, 12, 3), (255, 128, 0), np.uint8))
    assert upscale("solid.png", "--scale", "2", "--format", "jpg").code == 0
    assert (tmp_path / "clear_x2.jpg").read_bytes() == (tmp_path / "solid_x2.jpg").read_bytes()
    assert upscale("opaque.png", "--scale", "3", "--depth", "16").code == 0
    assert (tmp_path / "opaque_x3.png").read_bytes()[24] == 16
    assert upscale("opaque_x3.png", "--scale", "2", "--depth", "8", "--format", "jpg").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--background", "whitish"], "'whitish': is no opaque colour"),
        (["--background", "rgb(300,0,0)"], "'rgb(300,0,0)': is no opaque colour"),
        (["--background", "#ffffff80"], "'#ffffff80': is no opaque colour"),
        (["--depth", "12"], "neither 8 nor 16"),
    ],
)
def test_values_that_mean_nothing(upscale: Cli, tmp_path: Path, options: list[str], words: str) -> None:
    save(tmp_path / "a.png")
    refused = upscale("a.png", "--scale", "2", *options)
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert words in refused.err
