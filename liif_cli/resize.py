"""Resampling with fixed kernels: the only degradation, and the resize of painted pictures.

Conventions. Pixel `i` covers `[i, i + 1)` and has its centre at `i + 0.5`. Of `n_out` output pixels over `n_in` input
pixels, pixel `j` is centred at `(j + 0.5) * n_in / n_out`. When a picture shrinks, the kernel is widened by the ratio
(antialiasing); when it grows, it keeps its width. The cubic kernel is Keys' with a = -0.5, as in MATLAB and PIL.

Every kernel here gets its weights from `taps`; what differs is the edge, the order of the passes and the rounding:

    matlab_bicubic        mirrored edges,  rows (height) first,  rounded half up to 8 bits after each pass
    PIL (pil_bicubic)     taps cut off,    columns (width) first, 22-bit fixed point, rounded to 8 bits after each pass
    bicubic_reduce_batch  the same arithmetic as PIL, in tensors, for a batch of different sizes
    torch_bicubic         taps cut off,    floating point, no rounding
    BandResampler         taps cut off,    floating point, no rounding, rows in and rows out
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from liif_cli.errors import InputError

Kernel = Literal["bicubic", "lanczos3"]
Edges = Literal["drop", "symmetric"]
Window = tuple[float, float]  # (start, stop)
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

PIL_PRECISION_BITS = 22  # PIL holds its 8-bit weights in 32 bits: 8 for the pixel, 2 to spare for overshoot


def _cubic(x: FloatArray) -> FloatArray:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos3(x: FloatArray) -> FloatArray:
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


# name: (kernel, half of its width in pixels)
_KERNELS: dict[str, tuple[Callable[[FloatArray], FloatArray], float]] = {
    "bicubic": (_cubic, 2.0),
    "lanczos3": (_lanczos3, 3.0),
}


class Taps(NamedTuple):
    """One axis of a separable resampler: output `j` is `sum_i weights[j, i] * input[first[j] + i]`."""

    first: IntArray  # (n_out,), never below 0; first + k never beyond n_in
    weights: FloatArray  # (n_out, k), each row sums to 1

    @property
    def stop(self) -> IntArray:
        """(n_out,): one past the last input that each output really uses."""
        used = self.weights != 0
        trailing = np.argmax(used[:, ::-1], axis=1)
        return np.asarray(self.first + used.shape[1] - trailing, np.int64)

    def apply(self, image: NDArray[Any], axis: int) -> FloatArray:
        """Resample one axis of an array in float64, summing the taps in order."""
        source = np.moveaxis(np.asarray(image), axis, 0)
        shape = (-1,) + (1,) * (source.ndim - 1)
        result = np.zeros((len(self.first), *source.shape[1:]))
        for i, weight in enumerate(self.weights.T):
            result += weight.reshape(shape) * source[self.first + i]
        return np.moveaxis(result, 0, axis)

    def dense(self, n_in: int) -> FloatArray:
        """Return the same map as a matrix (n_out, n_in)."""
        matrix = np.zeros((len(self.first), n_in))
        columns = self.first[:, None] + np.arange(self.weights.shape[1])
        np.put_along_axis(matrix, columns, self.weights, axis=1)
        return matrix


def taps(
    n_in: int,
    n_out: int,
    kernel: Kernel = "bicubic",
    *,
    edges: Edges = "drop",
    window: Window | None = None,
) -> Taps:
    """Return the weights that resample `n_in` pixels into `n_out`.

    Args:
        n_in, n_out: pixels along the axis, at least 1.
        kernel: "bicubic" (a = -0.5) or "lanczos3", widened by the ratio when shrinking.
        edges: "drop" leaves out what lies beyond the edge and normalises the rest (PIL, torch); "symmetric" mirrors the
            picture about its edge, the edge pixel repeated (MATLAB).
        window: (start, stop) in input pixels, the part that the output covers; the whole axis by default. Pixels
            outside the window still count where the kernel reaches them. With "drop" it lies within [0, n_in].

    Raises:
        ValueError: a size below 1 or a window that is empty or out of range.
    """
    start, stop = (0.0, float(n_in)) if window is None else window
    if min(n_in, n_out) < 1:
        raise ValueError(f"cannot resample {n_in} pixels to {n_out}: both must be at least 1")
    if not start < stop or (edges == "drop" and not 0 <= start < stop <= n_in):
        raise ValueError(f"window ({start}, {stop}) is not a part of [0, {n_in}]")
    function, support = _KERNELS[kernel]
    step = (stop - start) / n_out
    stretch = max(step, 1.0)
    centres = start + (np.arange(n_out) + 0.5) * step
    low = np.floor(centres - support * stretch + 0.5).astype(np.int64)
    high = np.floor(centres + support * stretch + 0.5).astype(np.int64)
    width = int((high - low).max())
    index = low[:, None] + np.arange(width)  # (n_out, width), may lie outside the picture
    weights = function((index + 0.5 - centres[:, None]) * (1.0 / stretch))
    weights[index >= high[:, None]] = 0.0
    if edges == "drop":
        weights[(index < 0) | (index >= n_in)] = 0.0
    else:
        index = index % (2 * n_in)
        index = np.minimum(index, 2 * n_in - 1 - index)
    weights /= weights.sum(axis=1, keepdims=True)

    # Gather into k neighbours that all lie inside: mirrored taps are added to the pixel they repeat.
    k = min(width, n_in)
    first = np.clip(index.min(axis=1), 0, n_in - k)
    slot = np.clip(index - first[:, None], 0, k - 1)
    inside = np.zeros((n_out, k))
    np.add.at(inside, (np.arange(n_out)[:, None], slot), weights)
    return Taps(first, inside)


@overload
def matlab_bicubic(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]: ...
@overload
def matlab_bicubic(image: NDArray[np.floating[Any]], size: tuple[int, int]) -> FloatArray: ...
def matlab_bicubic(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """MATLAB's `imresize(image, size, "bicubic")`, smaller or larger; of uint8, bit for bit.

    Args:
        image: (H, W) or (H, W, C). uint8 gives uint8, rounded half up after each pass. Floats of any range give
            float64, nowhere rounded or clamped.
        size: (height, width) of the output.

    The bicubic baseline in print (SRCNN, Dong et al. 2014; Set5 33.66 / 30.39 / 28.42 dB at x2, x3, x4) is a luma
    picture rounded to 8 bits, reduced and enlarged in floats, rounded again. Low-resolution RGB files enlarged in
    floats and scored by the protocol give a little more: 33.68 / 30.41 / 28.43.

    Raises:
        ValueError: a side below 1.
    """
    result = image
    # The axis that shrinks most goes first, rows on a tie.
    for axis in sorted((0, 1), key=lambda axis: size[axis] / image.shape[axis]):
        result = taps(image.shape[axis], size[axis], edges="symmetric").apply(result, axis)
        if image.dtype == np.uint8:
            result = np.floor(np.clip(result, 0.0, 255.0) + 0.5).astype(np.uint8)
    return result


def matlab_reduce(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Crop (H, W, C) uint8 to a multiple of `scale`, keeping the top left, and reduce it: the protocol's x2, x3, x4.

    Raises:
        InputError: the picture is smaller than `scale` on a side.
    """
    height, width = (side // scale for side in image.shape[:2])
    if min(height, width) < 1:
        raise InputError(f"a picture of {image.shape[0]}x{image.shape[1]} cannot be reduced by {scale}")
    return matlab_bicubic(image[: height * scale, : width * scale], (height, width))


def pil_bicubic(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (H, W, 3) or (H, W) uint8 to (height, width) with PIL's antialiased bicubic: the other scales."""
    height, width = size
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))  # a copy is writable


@lru_cache(maxsize=1024)
def _reduction_matrix(side: int, target: int, pad_to: int, device: torch.device) -> torch.Tensor:
    """(target, pad_to): PIL's fixed-point weights for one source side, as whole numbers. Cached: sides come again."""
    if side > pad_to:
        raise ValueError(f"a crop of side {side} does not fit in {pad_to} pixels")
    dense = np.zeros((target, pad_to))
    dense[:, :side] = taps(side, target, "bicubic").dense(side)
    fixed = np.trunc(dense * 2.0**PIL_PRECISION_BITS + np.copysign(0.5, dense))
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.from_numpy(fixed).to(device=device, dtype=dtype)


def reduction_matrices(
    sides: Sequence[int], target: int, pad_to: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return (B, target, pad_to) matrices that resample lines of `sides[b]` pixels, padded to `pad_to`, into `target`.

    Whole numbers: PIL's weights times 2^22; columns beyond a side are zero. float64, in which sums with 8-bit pixels
    are exact; float32 on MPS, which has no float64.
    """
    return torch.stack([_reduction_matrix(int(side), target, pad_to, torch.device(device)) for side in sides])


def bicubic_reduce_batch(crops: torch.Tensor, sides: Sequence[int], target: int) -> torch.Tensor:
    """PIL's antialiased 8-bit bicubic for a batch of square crops of different sides, on the tensor's device.

    Args:
        crops: (B, C, pad, pad) uint8; crop `b` is `crops[b, :, :sides[b], :sides[b]]`, what lies beyond is ignored.
        sides: B source sides, each at most `pad`.
        target: output side.

    Returns:
        (B, C, target, target) float32 holding whole levels 0..255: bit for bit PIL's result where float64 exists (CPU
        and CUDA, also under autocast and with TF32 allowed), within one level of it on MPS.

    Raises:
        ValueError: a side beyond `pad`, or not one side for each crop.
    """
    if len(sides) != len(crops):
        raise ValueError(f"{len(sides)} sides for {len(crops)} crops")
    if max(sides) > crops.shape[-1]:
        raise ValueError(f"sides {list(sides)} do not fit in crops padded to {crops.shape[-1]} pixels")
    if crops.device.type == "cpu":  # the padding is most of the work there, and a loop costs nothing
        reduced = [
            reduce_by(crop[None, :, :side, :side], reduction_matrices([side], target, side))
            for crop, side in zip(crops, sides, strict=True)
        ]
        return torch.cat(reduced)
    return reduce_by(crops, reduction_matrices(sides, target, crops.shape[-1], crops.device))


def reduce_by(crops: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """As `bicubic_reduce_batch`, by the matrices of `reduction_matrices`."""
    batch, channels, height, width = crops.shape
    lines = crops.to(matrices.dtype).reshape(batch, channels * height, width)
    lines = _to_levels(torch.bmm(lines, matrices.mT))  # (B, C * height, target)
    lines = lines.reshape(batch, channels, height, -1)
    return _to_levels(matrices[:, None] @ lines).float()


def _to_levels(fixed: torch.Tensor) -> torch.Tensor:
    """Round half up from fixed point to whole levels, as PIL's `(sum + half) >> bits`."""
    return (fixed * 2.0**-PIL_PRECISION_BITS + 0.5).floor_().clamp_(0, 255)


def torch_bicubic(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (B, C, H, W) floats to (height, width) with torch's antialiased bicubic; nothing is rounded or clamped."""
    return torch.nn.functional.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


_BLOCK = 16  # outputs in a dense block: fewer leave the BLAS idle, more multiply too many zeros
# What one thread does at a time: values of a row, and blocks of columns.
_STRIP, _TOGETHER = 2**15, 32
Each = Callable[[Callable[[Any], None], Iterable[Any]], Iterable[None]]


class _Block(NamedTuple):
    """Some neighbouring outputs of a line as one dense product with the inputs first..stop."""

    first: int
    stop: int
    weights: NDArray[np.float32]  # (outputs, stop - first), column order: a third quicker where it stands on the right


def _block(line: Taps, start: int, end: int, channels: int = 1) -> _Block:
    """Outputs start..end of a line whose pixels hold `channels` interleaved values, counted in values."""
    part = Taps(line.first[start:end], line.weights[start:end])
    first, stop = int(part.first.min()), int(part.stop.max())
    reach = int(part.first.max()) + part.weights.shape[1]  # at least stop: trailing weights may be zero
    dense = Taps(part.first - first, part.weights).dense(reach - first)[:, : stop - first]
    spread = np.kron(dense, np.eye(channels)) if channels > 1 else dense
    return _Block(first * channels, stop * channels, np.asfortranarray(spread, np.float32))


class BandResampler:
    """Resample a picture that arrives in bands of rows, top to bottom, holding only the rows that are still needed.

        resampler = BandResampler((h, w), (H, W))
        for band in bands:                  # (k, w, C), k of any size, changing as it likes
            write(resampler.push(band))     # (j, W, C), j from 0 up; H rows after the last band

    The rows are those of the whole picture resampled at once, whatever the bands, up to float32 rounding. Both passes
    are products of small dense blocks of the banded weights, which a BLAS does faster than taps one by one.
    """

    REACH_PX = _KERNELS["bicubic"][1]  # how far from an output pixel's centre it reads, in the larger of both pixels

    def __init__(
        self,
        in_size: tuple[int, int],
        out_size: tuple[int, int],
        windows: tuple[Window | None, Window | None] = (None, None),
    ) -> None:
        """Plan both axes: bicubic, antialiased when shrinking, taps beyond the edge dropped.

        Args:
            in_size, out_size: (height, width).
            windows: of each axis, (start, stop) in input pixels, the part that the output covers; the whole axis by
                default.

        Raises:
            ValueError: as `taps`.
        """
        self.in_size, self.out_size = in_size, out_size
        self._rows, self._columns = (
            taps(n_in, n_out, window=window) for n_in, n_out, window in zip(in_size, out_size, windows, strict=True)
        )
        self._rows_needed = np.maximum.accumulate(self._rows.stop)  # input rows that each output row waits for, (H,)
        self._column_blocks: list[_Block] = []  # built when the first band tells the number of channels
        self._held = np.zeros((0, 0), np.float32)  # rows resampled along the width, (rows, W * C)
        self._held_from = 0  # input row of the first of them
        self._taken = self._given = 0  # input rows consumed, output rows emitted

    def push(self, rows: NDArray[np.float32], each: Each = map) -> NDArray[np.float32]:
        """Consume the next k input rows, return the output rows that became computable.

        Args:
            rows: (k, w, C) float32, finite; k may be 0 and may differ from call to call.
            each: applies a function to many arguments, such as the ``map`` of several threads.

        Returns:
            (j, W, C) float32, j from 0 up; unrounded and not clamped.

        Raises:
            ValueError: rows of another width or number of channels, or more rows than the input has.
        """
        count, width, channels = rows.shape
        if width != self.in_size[1] or self._taken + count > self.in_size[0]:
            raise ValueError(f"{self._taken + count} rows of {width} pixels for an input of size {self.in_size}")
        if not self._column_blocks:
            starts = range(0, self.out_size[1], _BLOCK)
            self._column_blocks = [_block(self._columns, a, a + _BLOCK, channels) for a in starts]
            self._held = np.zeros((0, self.out_size[1] * channels), np.float32)
        if self._held.shape[1] != self.out_size[1] * channels:
            raise ValueError(f"a band of {channels} channels after bands of {self._held.shape[1] // self.out_size[1]}")
        self._hold(np.ascontiguousarray(rows, np.float32).reshape(count, width * channels), each)
        stop = int(np.searchsorted(self._rows_needed, self._taken, side="right"))
        result = np.empty((stop - self._given, self._held.shape[1]), np.float32)

        def resample(start: int, strip: slice) -> None:
            end = min(start + _BLOCK, stop)
            block = _block(self._rows, start, end)
            held = self._held[block.first - self._held_from : block.stop - self._held_from, strip]
            np.matmul(block.weights, held, out=result[start - self._given : end - self._given, strip])

        strips = [slice(left, left + _STRIP) for left in range(0, result.shape[1], _STRIP)]
        parts = [(start, strip) for start in range(self._given, stop, _BLOCK) for strip in strips]
        for _ in each(lambda part: resample(*part), parts):
            pass
        self._given = stop
        return result.reshape(-1, self.out_size[1], channels)

    def _hold(self, lines: NDArray[np.float32], each: Each) -> None:
        """Resample input rows (k, w * C) along the width; append them to the held rows that are still needed."""
        needed = self._rows.first[self._given] if self._given < self.out_size[0] else self.in_size[0]
        old = self._held[max(needed - self._held_from, 0) :]
        self._taken += len(lines)
        lines = lines[max(needed - self._taken + len(lines), 0) :]
        self._held = np.empty((len(old) + len(lines), old.shape[1]), np.float32)
        self._held_from = self._taken - len(self._held)
        self._held[: len(old)] = old
        fresh = self._held[len(old) :]
        places = np.cumsum([0, *(len(block.weights) for block in self._column_blocks)])

        def resample(first: int) -> None:
            for block, start in zip(self._column_blocks[first : first + _TOGETHER], places[first:], strict=False):
                part = fresh[:, start : start + len(block.weights)]
                np.matmul(lines[:, block.first : block.stop], block.weights.T, out=part)

        for _ in each(resample, range(0, len(self._column_blocks), _TOGETHER)):
            pass
