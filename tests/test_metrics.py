"""PSNR and SSIM: the protocol's formulas, agreement with scikit-image, and refusal of what cannot be scored."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liif_cli.errors import InputError, UsageError
from liif_cli.metrics import psnr, ssim

DATA = Path(__file__).parents[2] / "shared" / "data"
RGB_TO_Y = np.array([65.481, 128.553, 24.966]) / 255


def noisy_pair(seed: int, height: int = 90, width: int = 70) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((height, width, 3))
    return np.clip(truth + rng.normal(0, 0.1, truth.shape), 0, 1), truth


def real_pair() -> tuple[np.ndarray, np.ndarray]:
    path = DATA / "benchmark/Set5/HR/butterfly.png"
    if not path.exists():
        pytest.skip(f"no benchmark pictures at {path.parent}")
    truth = Image.open(path).convert("RGB")
    soft = truth.resize((truth.width // 3, truth.height // 3)).resize(truth.size)
    return np.asarray(soft), np.asarray(truth)


def shave(image: np.ndarray, border: int) -> np.ndarray:
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def luma(image: np.ndarray) -> np.ndarray:
    return image @ RGB_TO_Y + 16 / 255


def skimage_ssim(image: np.ndarray, truth: np.ndarray, **options: int) -> float:
    metrics = pytest.importorskip("skimage.metrics")
    return metrics.structural_similarity(
        image, truth, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, **options
    )


def test_an_error_of_a_tenth_everywhere_is_20_db() -> None:
    truth = np.full((8, 8, 3), 0.5)
    assert psnr(truth + 0.1, truth, border=0, channel="rgb") == pytest.approx(20.0)
    # A grey error has luma 219.859 / 256 of itself.
    expected = 20.0 - 20 * np.log10((65.738 + 129.057 + 25.064) / 256)
    assert psnr(truth + 0.1, truth, border=0, channel="y") == pytest.approx(expected)


@pytest.mark.parametrize("channel", ["y", "rgb"])
def test_equal_pictures_are_infinitely_close_and_wholly_similar(channel: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert psnr(image, image, border=2, channel=channel) == np.inf
    assert ssim(image, image, border=2, channel=channel) == pytest.approx(1.0)


def test_only_pixels_within_the_border_count() -> None:
    image, truth = noisy_pair(1)
    inside = psnr(image, truth, border=4, channel="y"), ssim(image, truth, border=4, channel="y")
    image[:4] = image[-4:] = 0
    image[:, :4] = image[:, -4:] = 1
    assert (psnr(image, truth, border=4, channel="y"), ssim(image, truth, border=4, channel="y")) == inside
    assert inside[0] == psnr(shave(image, 4), shave(truth, 4), border=0, channel="y")
    assert psnr(image, truth, border=3, channel="y") < inside[0]


def test_the_output_is_clamped_but_not_rounded() -> None:
    truth = np.full((8, 8, 3), 1.0)
    assert psnr(truth + 5, truth, border=0, channel="rgb") == np.inf
    assert psnr(truth - 0.001, truth, border=0, channel="rgb") == pytest.approx(60.0)


def test_eight_and_sixteen_bits_score_as_the_floats_they_stand_for() -> None:
    rng = np.random.default_rng(2)
    image, truth = (rng.integers(0, 256, (40, 30, 3), dtype=np.uint8) for _ in range(2))
    wide = [x.astype(np.uint16) * 257 for x in (image, truth)]
    for metric in (psnr, ssim):
        expected = metric(image / 255, truth / 255, border=3, channel="y")
        assert metric(image, truth, border=3, channel="y") == pytest.approx(expected, abs=1e-12)
        assert metric(*wide, border=3, channel="y") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("border", [0, 5])
def test_scores_agree_with_scikit_image_on_noise(seed: int, border: int) -> None:
    assert_agreement(*noisy_pair(seed), border)


def test_scores_agree_with_scikit_image_on_a_picture() -> None:
    image, truth = real_pair()
    assert_agreement(image / 255, truth / 255, 3)
    assert psnr(image, truth, border=3, channel="y") == psnr(image / 255, truth / 255, border=3, channel="y")


def assert_agreement(image: np.ndarray, truth: np.ndarray, border: int) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = shave(image, border), shave(truth, border)
    ya, yb = luma(a), luma(b)
    rgb_psnr = metrics.peak_signal_noise_ratio(b, a, data_range=1)
    y_psnr = metrics.peak_signal_noise_ratio(yb, ya, data_range=1)
    assert psnr(image, truth, border=border, channel="rgb") == pytest.approx(rgb_psnr, abs=1e-4)
    assert psnr(image, truth, border=border, channel="y") == pytest.approx(y_psnr, abs=1e-4)
    assert ssim(image, truth, border=border, channel="rgb") == pytest.approx(
        skimage_ssim(a, b, channel_axis=2), abs=1e-4
    )
    assert ssim(image, truth, border=border, channel="y") == pytest.approx(skimage_ssim(ya, yb), abs=1e-4)


def test_ssim_of_a_picture_taller_than_a_strip_is_the_mean_of_all_windows() -> None:
    image, truth = noisy_pair(4, height=200, width=16)
    assert ssim(image, truth, border=0, channel="y") == pytest.approx(skimage_ssim(luma(image), luma(truth)), abs=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_what_cannot_be_scored_is_refused_with_its_numbers(metric) -> None:
    image = np.zeros((20, 24, 3), np.uint8)
    with pytest.raises(InputError, match=r"\(20, 24, 3\) and \(20, 23, 3\)"):
        metric(image, image[:, :-1], border=0, channel="y")
    with pytest.raises(InputError, match=r"\(20, 24\)"):
        metric(image[..., 0], image[..., 0], border=0, channel="y")
    with pytest.raises(InputError, match="20x24 less a border of 10"):
        metric(image, image, border=10, channel="y")
    with pytest.raises(UsageError, match="-1"):
        metric(image, image, border=-1, channel="y")
    with pytest.raises(UsageError, match='"luma"'):
        metric(image, image, border=0, channel="luma")


def test_ssim_needs_one_whole_window() -> None:
    image = np.zeros((17, 17, 3), np.uint8)
    assert ssim(image, image, border=3, channel="y") == 1.0
    with pytest.raises(InputError, match="11x11 must remain"):
        ssim(image, image, border=4, channel="y")
