"""The kernels: MATLAB and PIL to the last bit, and resampling in bands that leaves no seam."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from liif_cli import resize
from liif_cli.errors import InputError
from liif_cli.metrics import psnr
from liif_cli.resize import (
    BandResampler,
    bicubic_reduce_batch,
    matlab_bicubic,
    matlab_reduce,
    pil_bicubic,
    reduce_by,
    reduction_matrices,
    taps,
    torch_bicubic,
)

BENCHMARK = Path(__file__).parents[2] / "shared" / "data" / "benchmark"
KERNELS = ["bicubic", "lanczos3"]
needs_benchmark = pytest.mark.skipif(not BENCHMARK.is_dir(), reason=f"no benchmark pictures at {BENCHMARK}")


def noise(*shape: int, seed: int = 0, extreme: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if extreme:  # black and white only: the most overshoot
        return (rng.integers(0, 2, shape) * 255).astype(np.uint8)
    return rng.integers(0, 256, shape, dtype=np.uint8)


@lru_cache(maxsize=64)
def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def resample_whole(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows = taps(image.shape[0], size[0])
    columns = taps(image.shape[1], size[1])
    return columns.apply(rows.apply(image, 0), 1)


# --- taps


@settings(deadline=None)
@given(
    n_in=st.integers(1, 90),
    n_out=st.integers(1, 90),
    kernel=st.sampled_from(KERNELS),
    edges=st.sampled_from(["drop", "symmetric"]),
)
def test_taps_lie_inside_and_sum_to_one(n_in: int, n_out: int, kernel: str, edges: str) -> None:
    line = taps(n_in, n_out, kernel, edges=edges)
    assert line.first.shape == (n_out,)
    assert line.first.min() >= 0
    assert (line.first + line.weights.shape[1]).max() <= n_in
    assert (np.diff(line.first) >= 0).all() or edges == "symmetric"
    np.testing.assert_allclose(line.weights.sum(axis=1), 1.0)
    np.testing.assert_allclose(line.apply(np.ones(n_in), 0), 1.0)
    np.testing.assert_allclose(line.dense(n_in) @ np.arange(n_in), line.apply(np.arange(n_in), 0), atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_same_size_changes_nothing(kernel: str) -> None:
    np.testing.assert_allclose(taps(9, 9, kernel).dense(9), np.eye(9), atol=1e-15)


def test_cubic_weights_are_those_of_keys() -> None:
    # By hand: w(0.25) = 111/128, w(0.75) = 29/128, w(1.25) = -9/128, w(1.75) = -3/128.
    doubled = taps(8, 16).dense(8) * 128
    np.testing.assert_allclose(doubled[6], [0, -3, 29, 111, -9, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(doubled[7], [0, 0, -9, 111, 29, -3, 0, 0], atol=1e-12)
    halved = taps(8, 4, edges="symmetric").dense(8) * 256
    np.testing.assert_allclose(halved[1], [-9 - 3, 29, 111, 111, 29, -9, -3, 0], atol=1e-12)
    np.testing.assert_allclose(halved[0], [111 + 29, 111 - 9, 29 - 3, -9, -3, 0, 0, 0], atol=1e-12)


def test_a_window_is_a_part_of_the_whole() -> None:
    whole = taps(40, 120).dense(40)
    part = taps(40, 30, window=(10.0, 20.0)).dense(40)
    np.testing.assert_allclose(part, whole[30:60], atol=1e-12)


@pytest.mark.parametrize("window", [(3.0, 3.0), (-1.0, 4.0), (0.0, 8.5)])
def test_a_window_out_of_range_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="window"):
        taps(8, 4, window=window)


def test_an_empty_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="0 pixels to 4"):
        taps(0, 4)
    with pytest.raises(ValueError, match="4 pixels to 0"):
        taps(4, 0)


# --- MATLAB


def test_matlab_halves_a_step_as_worked_out_by_hand() -> None:
    step = np.array([0, 0, 0, 0, 255, 255, 255, 255], np.uint8)
    expected = [0, 17, 238, 255]  # 255 / 256 times -3, 29 - 9 - 3, 111 + 111 + 29 - 12, 140 + 102 + 26 - 9
    np.testing.assert_array_equal(matlab_bicubic(step[:, None], (4, 1))[:, 0], expected)
    np.testing.assert_array_equal(matlab_bicubic(step[None], (1, 4))[0], expected)


def test_matlab_rounds_halves_up() -> None:
    dot = np.array([0, 128, 0, 0, 0, 0, 0, 0], np.uint8)[:, None]
    np.testing.assert_array_equal(matlab_bicubic(dot, (4, 1))[:, 0], [51, 15, 0, 0])  # 102 / 2, 29 / 2, -3 / 2


def test_matlab_doubles_a_dot_as_worked_out_by_hand() -> None:
    dot = np.zeros((5, 1))
    dot[2] = 128
    expected = [0, -3, -9, 29, 111, 111, 29, -9, -3, 0]
    np.testing.assert_allclose(matlab_bicubic(dot, (10, 1))[:, 0], expected, atol=1e-12)
    rounded = matlab_bicubic(dot.astype(np.uint8), (10, 1))[:, 0]
    np.testing.assert_array_equal(rounded, np.clip(expected, 0, 255))


@pytest.mark.parametrize("size", [(4, 6), (13, 22), (26, 44), (36, 9)])
def test_matlab_keeps_constants(size: tuple[int, int]) -> None:
    flat = matlab_bicubic(np.full((13, 22, 3), 137, np.uint8), size)
    assert flat.shape == (*size, 3)
    assert flat.dtype == np.uint8
    assert (flat == 137).all()


def test_matlab_in_floats_rounds_nowhere() -> None:
    image = noise(12, 18, 3)
    exact = matlab_bicubic(image / 255, (6, 6))
    assert exact.dtype == np.float64
    assert np.abs(np.clip(exact, 0, 1) * 255 - matlab_bicubic(image, (6, 6))).max() <= 1.5
    assert not np.allclose(exact * 255, np.rint(exact * 255), atol=1e-3)


def test_matlab_refuses_an_empty_result() -> None:
    with pytest.raises(ValueError, match="must be"):
        matlab_bicubic(noise(8, 8, 3), (0, 4))


def test_reducing_crops_to_a_multiple_from_the_top_left() -> None:
    image = noise(14, 17, 3)
    np.testing.assert_array_equal(matlab_reduce(image, 3), matlab_bicubic(image[:12, :15], (4, 5)))
    with pytest.raises(InputError, match="14x17 cannot be reduced by 15"):
        matlab_reduce(image, 15)


@needs_benchmark
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("dataset", ["Set5", "Set14"])
def test_matlab_reduction_gives_the_published_files_bit_for_bit(dataset: str, scale: int) -> None:
    files = sorted((BENCHMARK / dataset / "HR").glob("*.png"))
    assert len(files) == {"Set5": 5, "Set14": 14}[dataset]
    for file in files:
        published = read(BENCHMARK / dataset / f"LR_bicubic/X{scale}/{file.stem}x{scale}.png")
        np.testing.assert_array_equal(matlab_reduce(read(file), scale), published, err_msg=file.name)


@needs_benchmark
@pytest.mark.parametrize(
    ("scale", "in_print", "by_protocol"), [(2, 33.66, 33.684), (3, 30.39, 30.406), (4, 28.42, 28.432)]
)
def test_bicubic_enlargement_scores_as_published_on_set5(scale: int, in_print: float, by_protocol: float) -> None:
    """In print: SRCNN's 8-bit luma, reduced and enlarged in floats. By the protocol: the RGB files."""
    luma_scores, rgb_scores = [], []
    for file in sorted((BENCHMARK / "Set5/HR").glob("*.png")):
        low_res = read(BENCHMARK / f"Set5/LR_bicubic/X{scale}/{file.stem}x{scale}.png")
        size = low_res.shape[0] * scale, low_res.shape[1] * scale
        truth = read(file)[: size[0], : size[1]]
        rgb_scores.append(psnr(matlab_bicubic(low_res / 255, size), truth, border=scale, channel="y"))
        luma = np.floor(truth @ np.array([65.481, 128.553, 24.966]) / 255 + 16.5)
        enlarged = matlab_bicubic(matlab_bicubic(luma, low_res.shape[:2]), size)
        error = (np.floor(np.clip(enlarged, 0, 255) + 0.5) - luma)[scale:-scale, scale:-scale] / 255
        luma_scores.append(-10 * np.log10(np.mean(error**2)))
    assert np.mean(luma_scores) == pytest.approx(in_print, abs=0.005)
    assert np.mean(rgb_scores) == pytest.approx(by_protocol, abs=0.001)


# --- PIL, in tensors


def padded(crops: list[np.ndarray], pad: int, fill: int = 77) -> torch.Tensor:
    batch = torch.full((len(crops), 3, pad, pad), fill, dtype=torch.uint8)
    for i, crop in enumerate(crops):
        batch[i, :, : crop.shape[0], : crop.shape[1]] = torch.from_numpy(crop).permute(2, 0, 1)
    return batch


def reduced_by_pil(crops: list[np.ndarray], target: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(pil_bicubic(crop, (target, target))) for crop in crops]).permute(0, 3, 1, 2)


def test_pil_size_is_height_then_width() -> None:
    assert pil_bicubic(noise(20, 30, 3), (7, 11)).shape == (7, 11, 3)
    assert pil_bicubic(noise(20, 30), (7, 11)).shape == (7, 11)


@settings(max_examples=60, deadline=None)
@given(
    sides=st.lists(st.integers(1, 130), min_size=1, max_size=5),
    target=st.integers(1, 50),
    seed=st.integers(0, 2**16),
    extreme=st.booleans(),
)
def test_a_batch_of_any_sides_is_reduced_as_pil_does(sides: list[int], target: int, seed: int, extreme: bool) -> None:
    crops = [noise(side, side, 3, seed=seed + i, extreme=extreme) for i, side in enumerate(sides)]
    result = bicubic_reduce_batch(padded(crops, max(sides)), sides, target)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, reduced_by_pil(crops, target).float(), atol=0, rtol=0)


@pytest.mark.parametrize("extreme", [False, True])
def test_the_padded_product_of_accelerators_agrees_too(extreme: bool) -> None:
    """Devices other than the CPU multiply the padded batch; float32, for want of float64, stays within a level."""
    sides = [48, 61, 100, 137, 192]
    crops = [noise(side, side, 3, seed=side, extreme=extreme) for side in sides]
    expected = reduced_by_pil(crops, 48).float()
    matrices = reduction_matrices(sides, 48, 200)
    assert matrices.shape == (5, 48, 200)
    torch.testing.assert_close(reduce_by(padded(crops, 200), matrices), expected, atol=0, rtol=0)
    torch.testing.assert_close(reduce_by(padded(crops, 200), matrices.float()), expected, atol=1, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_reduces_as_pil_does_under_autocast() -> None:
    sides = [48, 61, 100, 137, 192]
    crops = [noise(side, side, 3, seed=side, extreme=True) for side in sides]
    with torch.autocast("cuda", torch.bfloat16):
        result = bicubic_reduce_batch(padded(crops, 192).cuda(), sides, 48)
    torch.testing.assert_close(result.cpu(), reduced_by_pil(crops, 48).float(), atol=0, rtol=0)


def test_sides_that_do_not_fit_are_refused() -> None:
    crops = torch.zeros(2, 3, 20, 20, dtype=torch.uint8)
    with pytest.raises(ValueError, match="1 sides for 2 crops"):
        bicubic_reduce_batch(crops, [20], 5)
    with pytest.raises(ValueError, match=r"\[20, 21\].*20 pixels"):
        bicubic_reduce_batch(crops, [20, 21], 5)


@pytest.mark.parametrize("size", [(9, 31), (60, 33)])
def test_torch_bicubic_is_the_same_kernel_unrounded(size: tuple[int, int]) -> None:
    image = noise(40, 33, 3).astype(np.float32) / 255
    result = torch_bicubic(torch.from_numpy(image).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0)
    np.testing.assert_allclose(result.numpy(), resample_whole(image, size), atol=1e-5)


# --- bands


@pytest.fixture(scope="module", autouse=True)
def _small_parts() -> Iterator[None]:
    """So that small pictures have several, for several threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "_STRIP", 50)
        patch.setattr(resize, "_TOGETHER", 2)
        yield


@settings(deadline=None)
@given(data=st.data())
def test_bands_of_any_height_give_the_whole_picture(data: st.DataObject) -> None:
    sides = st.integers(1, 40)
    height, width = data.draw(sides, "height"), data.draw(sides, "width")
    size = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)), "out")
    channels = data.draw(st.integers(1, 4), "channels")
    cuts = sorted(data.draw(st.lists(st.integers(0, height), max_size=6), "cuts"))
    image = np.random.default_rng(height * width).random((height, width, channels), dtype=np.float32)
    resampler = BandResampler((height, width), size)
    with ThreadPoolExecutor(data.draw(st.integers(1, 3), "threads")) as pool:
        bands = [resampler.push(band, pool.map) for band in np.split(image, cuts)]
    whole = resample_whole(image, size)
    assert np.concatenate(bands).dtype == np.float32
    np.testing.assert_allclose(np.concatenate(bands), whole, atol=3e-6)


def test_rows_leave_as_soon_as_they_can_and_little_is_held() -> None:
    resampler = BandResampler((100, 10), (200, 20))
    image = np.ones((100, 10, 3), np.float32)
    given_rows = 0
    for row in range(100):
        given_rows += len(resampler.push(image[row : row + 1]))
        # The four input rows nearest to output rows 2i + 1 and 2i + 2 end with row i + 2.
        assert given_rows == (200 if row == 99 else max(0, 2 * row - 1))
        assert len(resampler._held) <= 5


def test_rows_that_do_not_belong_are_refused() -> None:
    resampler = BandResampler((4, 5), (8, 10))
    with pytest.raises(ValueError, match=r"rows of 6 pixels.*\(4, 5\)"):
        resampler.push(np.zeros((1, 6, 3), np.float32))
    resampler.push(np.zeros((3, 5, 3), np.float32))
    with pytest.raises(ValueError, match="4 channels"):
        resampler.push(np.zeros((1, 5, 4), np.float32))
    with pytest.raises(ValueError, match="5 rows"):
        resampler.push(np.zeros((2, 5, 3), np.float32))
