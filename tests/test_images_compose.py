"""What the network is shown and what becomes of its answers: no fringe, no tint, no lost level."""

import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from liif_cli.images import Picture, compose, layers, layers_bytes
from liif_cli.upscaler import load


def enlarge(image: np.ndarray, factor: int = 3) -> np.ndarray:
    """A stand-in for the network: bicubic, which overshoots as networks do; (H, W, 3) to float32, not clamped."""
    values = image.astype(np.float32) / (np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1)
    size = (image.shape[1] * factor, image.shape[0] * factor)
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(values[..., channel])).resize(size, Image.Resampling.BICUBIC))
        for channel in range(3)
    ]
    return np.stack(planes, axis=2)


def enlarged(picture: Picture, factor: int = 3) -> np.ndarray:
    return compose(picture, [enlarge(layer, factor) for layer in layers(picture)])


def random_picture(channels: int, dtype: type) -> Picture:
    greatest = 1 if dtype is np.float32 else np.iinfo(dtype).max
    return Picture((np.random.default_rng(0).random((9, 11, channels)) * greatest).astype(dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_layers_are_three_channels_and_what_comes_back_is_like_the_picture(channels: int, dtype: type) -> None:
    picture = random_picture(channels, dtype)
    shown = layers(picture)
    assert len(shown) == (2 if picture.has_alpha else 1)
    assert all(layer.shape == (9, 11, 3) and layer.flags["C_CONTIGUOUS"] for layer in shown)
    assert all(layer.dtype == dtype for layer in shown)
    out = enlarged(picture)
    assert out.shape == (27, 33, channels)
    assert out.dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_network_that_changes_nothing_changes_nothing(channels: int, dtype: type) -> None:
    picture = random_picture(channels, dtype)
    scale = 1 if dtype is np.float32 else np.iinfo(dtype).max
    bands = [layer.astype(np.float32) / (1 if layer.dtype == np.float32 else scale) for layer in layers(picture)]
    out = compose(picture, bands).astype(np.float64)
    visible = np.ones((9, 11), bool) if picture.alpha is None else picture.alpha > 0
    assert np.abs(out - picture.pixels)[visible].max() <= (1e-6 if dtype is np.float32 else 0)


def test_values_are_clamped_and_rounded_half_up() -> None:
    picture = Picture(np.array([[[0], [9], [3]]], np.uint8))
    values = np.array([-0.2, 1.3, 0.5 / 255, 1.4999 / 255, 1.5 / 255], np.float32)
    band = np.broadcast_to(values[None, :, None], (1, 5, 3))
    assert compose(picture, [band])[0, :, 0].tolist() == [0, 255, 1, 1, 2]


@pytest.mark.parametrize("edge", ["smooth", "jagged"])
@pytest.mark.parametrize("ground", [0, 1])
@pytest.mark.parametrize("painter", ["bicubic", "network"])
def test_a_disc_on_a_transparent_ground_gets_no_fringe(painter: str, ground: int, edge: str) -> None:
    """The invisible colour around an orange disc is pure blue; none of it may show, over white or over black."""
    y, x = np.mgrid[0:48, 0:48]
    alpha = np.clip(18 - np.hypot(y - 23.5, x - 23.5) + 0.5, 0, 1)
    if edge == "jagged":
        alpha = np.round(alpha)
    colour = np.where((alpha > 0)[..., None], (255, 128, 0), (0, 0, 255))
    picture = Picture(np.concatenate([colour, np.round(alpha * 255)[..., None]], axis=2).astype(np.uint8))
    out = enlarged(picture) if painter == "bicubic" else load(device="cpu").upscale(picture.pixels, 3)
    out = out.astype(np.float64) / 255
    over = out[..., :3] * out[..., 3:] + ground * (1 - out[..., 3:])
    # On this ground every colour of an edge lies on the line from the disc's to the ground's.
    share = out[..., 3:]
    ideal = share * (np.array([255, 128, 0]) / 255) + (1 - share) * ground
    assert np.abs(over - ideal).max() < 0.01
    assert out[..., 2][out[..., 3] > 0.1].max() < 0.05


@pytest.mark.parametrize("alpha", [[255, 128, 1], [0, 0, 9], [0, 255, 0]])
def test_what_cannot_be_seen_is_neither_shown_nor_counted(alpha: list[int]) -> None:
    """Grey stripes: the colour hidden where alpha is 0 changes no layer and does not make the picture coloured."""
    pixels = np.full((7, 9, 4), 90, np.uint8)
    pixels[..., 3] = np.tile(alpha, 3)
    pixels[0, 2, :3] = 91
    hidden = pixels.copy()
    hidden[hidden[..., 3] == 0, :3] = (255, 0, 40)
    for one, other in zip(layers(Picture(pixels)), layers(Picture(hidden)), strict=True):
        assert np.array_equal(one, other)
    assert Picture(hidden).is_neutral
    assert 90 <= layers(Picture(hidden))[0].min() <= layers(Picture(hidden))[0].max() <= 91


@pytest.mark.parametrize("value", [0, 1, 77, 255])
@pytest.mark.parametrize("channels", [2, 4])
def test_a_constant_alpha_costs_no_layer_and_stays_exactly(value: int, channels: int) -> None:
    picture = random_picture(channels, np.uint8)
    picture.pixels[..., -1] = value
    assert len(layers(picture)) == 1
    out = enlarged(picture)
    assert (out[..., -1] == value).all()
    opaque = Picture(picture.pixels[..., :-1])
    assert np.array_equal(out[..., :-1], enlarged(opaque))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grey_comes_out_pure_whatever_tint_the_network_gives_it(channels: int) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    pixels = np.repeat(grey, 3, axis=2) if channels >= 3 else grey
    if channels in (2, 4):
        pixels = np.concatenate([pixels, np.full((8, 8, 1), 255, np.uint8)], axis=2)
    picture = Picture(pixels)
    tinted = [enlarge(layer) + np.array([0.02, 0, -0.02], np.float32) for layer in layers(picture)]
    out = compose(picture, tinted)
    assert out.shape[2] == channels
    if channels >= 3:
        assert np.array_equal(out[..., 0], out[..., 1])
        assert np.array_equal(out[..., 0], out[..., 2])
    one = Picture(grey)
    assert np.array_equal(out[..., 0], compose(one, [enlarge(layer) for layer in layers(one)])[..., 0])


def test_a_deep_gradient_keeps_its_levels() -> None:
    ramp = np.linspace(0, 65_535, 600).astype(np.uint16)
    picture = Picture(np.broadcast_to(ramp[None, :, None], (4, 600, 3)).copy())
    out = enlarged(picture)
    assert out.dtype == np.uint16
    assert len(np.unique(out)) > 1500


def test_bands_compose_as_the_whole_does() -> None:
    picture = random_picture(4, np.uint8)
    results = [enlarge(layer) for layer in layers(picture)]
    whole = compose(picture, results)
    parts = [compose(picture, [result[top : top + 10] for result in results]) for top in range(0, 27, 10)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_the_network_s_answer_is_not_changed() -> None:
    picture = random_picture(4, np.uint8)
    results = [enlarge(layer) for layer in layers(picture)]
    before = [result.copy() for result in results]
    compose(picture, results)
    assert all(np.array_equal(one, other) for one, other in zip(results, before, strict=True))


def test_what_is_hidden_is_filled_alike_in_one_strip_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for size in ((40, 33), (41, 30), (1, 9), (7, 1)):
        pixels = random.integers(0, 256, (*size, 4), dtype=np.uint8)
        pixels[..., 3] = np.where(random.random(size) < 0.7, 0, 200)
        pixels[0, 0, 3] = 255
        whole = layers(Picture(pixels))[0]
        monkeypatch.setattr(sys.modules["liif_cli.images.compose"], "_STRIP_ROWS", 6)
        assert np.array_equal(layers(Picture(pixels))[0], whole)
        monkeypatch.undo()
        visible = pixels[..., 3] > 0
        assert np.array_equal(whole[visible], pixels[visible][:, :3])


@pytest.mark.parametrize(("channels", "dtype"), [(4, np.uint8), (4, np.uint16), (2, np.uint8), (1, np.uint8)])
def test_layers_take_no_more_than_they_are_said_to(channels: int, dtype: type) -> None:
    """Arrays alone are counted here; Pillow's planes take 3 bytes a pixel more."""
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1000, channels)).astype(dtype)
    pixels[200:900, 100:900] = 0
    picture = Picture(pixels)
    tracemalloc.start()
    try:
        shown = layers(picture)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    said = layers_bytes(picture)
    assert sum(layer.nbytes for layer in shown) <= peak + 2**16
    held = peak + (3 * 1500 * 1000 if channels == 4 else 0)
    assert held <= said + 2**22
    assert channels == 2 or held > 0.5 * said
