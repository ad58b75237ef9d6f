"""Areas of one colour stay exactly that colour, and nothing else is touched."""

import numpy as np
import pytest
from PIL import Image

from liif_cli.images import flat, keep_flat
from liif_cli.images.flat import REACH
from liif_cli.sizing import Box
from liif_cli.upscaler import load

PINK, GREEN = (230, 0, 126), (10, 200, 30)


def expected(image, size, box):
    """Which pixels of an output stay, and their colours, one by one."""
    height, width = image.shape[:2]
    same = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            around = image[max(0, y - REACH) : y + REACH + 1, max(0, x - REACH) : x + REACH + 1]
            same[y, x] = (around == image[y, x]).all()
    inside, colours = np.zeros(size, bool), np.zeros((*size, 3))
    for i in range(size[0]):
        for j in range(size[1]):
            y = box.top + (i + 0.5) * (box.bottom - box.top) / size[0] - 0.5
            x = box.left + (j + 0.5) * (box.right - box.left) / size[1] - 0.5
            y, x = round(y, 9), round(x, 9)
            corners = [(min(max(int(row), 0), height - 1), min(max(int(column), 0), width - 1))
                       for row in (np.floor(y), np.ceil(y)) for column in (np.floor(x), np.ceil(x))]  # fmt: skip
            inside[i, j] = all(same[corner] for corner in corners)
            colours[i, j] = image[corners[0]]
    return inside, colours


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("box", [Box(0, 0, 40, 50), Box(3.5, 2, 33, 49.25)])
def test_what_is_flat_all_around_keeps_its_colour_in_bands_of_any_height(dtype, box):
    image = np.zeros((40, 50, 3), np.uint8)
    image[:] = GREEN
    image[30:, 45:] = PINK
    image[2, 30] = 0
    image = image.astype(dtype) if dtype != np.float32 else (image / 255).astype(np.float32)
    size = (70, 91)
    noise = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    inside, colours = expected(image, size, box)
    greatest = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    assert 0.2 < inside.mean() < 0.9
    for cut in (0, 1, 13, 40):
        bands = ((0, noise[:cut].copy()), (cut, noise[cut:].copy()))
        made = np.concatenate([keep_flat(image, band, top, size, box) for top, band in bands if len(band)])
        assert np.array_equal(made == noise, np.broadcast_to(~inside[..., None], made.shape))
        np.testing.assert_allclose(made[inside], colours[inside] / greatest, atol=1e-7)


def test_a_band_that_cannot_be_written_to_is_left_as_it_is():
    band = np.ones((4, 6, 3), np.float32)
    band.flags.writeable = False
    assert (keep_flat(np.zeros((2, 3, 3), np.uint8), band, 0, (4, 6)) == 0).all()
    assert (band == 1).all()


@pytest.mark.parametrize("colour", [PINK, GREEN, (255, 255, 255)])
@pytest.mark.parametrize("scale", [2, 2.7, 6])
def test_a_page_of_one_colour_is_enlarged_to_one(colour, scale):
    model = load(device="cpu", memory="2G")
    large = np.asarray(model.upscale(Image.new("RGB", (40, 30), colour), scale))
    assert (large == colour).all()
    dot = Image.new("RGBA", (60, 40), (*colour, 0))
    dot.putpixel((50, 30), (0, 0, 0, 255))
    alpha = np.asarray(model.upscale(dot, scale))[..., 3]
    assert (alpha[: int(10 * scale), : int(30 * scale)] == 0).all()


def test_of_a_window_no_more_is_looked_at_than_matters(monkeypatch):
    seen, before = [], flat._flat
    monkeypatch.setattr(flat, "_flat", lambda image, *rows: seen.append(image.shape[1]) or before(image, *rows))
    keep_flat(np.zeros((60, 5000, 3), np.uint8), np.ones((20, 30, 3), np.float32), 0, (20, 30), Box(10, 900, 20, 915))
    assert seen == [15 + 2 + 2 * REACH]


@pytest.mark.parametrize("scale", [2, 3, 5])
def test_a_mirrored_picture_keeps_the_mirrored_areas(scale):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    image[20:, 10:50] = PINK
    size = (60 * scale, 60 * scale)
    empty = np.zeros((*size, 3), np.float32)
    kept, mirrored = (keep_flat(each, empty.copy(), 0, size) for each in (image, image[:, ::-1]))
    assert kept.any()
    assert np.array_equal(kept, mirrored[:, ::-1])


def test_a_photograph_is_not_touched():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    band = np.random.default_rng(1).random((60, 80, 3), dtype=np.float32)
    assert keep_flat(image, band, 0, (60, 80)) is band
