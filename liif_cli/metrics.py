"""How alike two pictures are: PSNR and SSIM as super-resolution papers report them.

Pictures are numpy arrays (H, W, 3) in RGB: uint8, uint16 (full range) or floats in [0, 1]. A float picture is
clamped to [0, 1] and scored as it is, not rounded to 8 bits. `border` pixels are shaved off each side first.

Channel "y" is BT.601 luma of studio range, `Y = (16 + 65.481 R + 128.553 G + 24.966 B) / 255`, MATLAB's `rgb2ycbcr`;
"rgb" takes the three channels alike. The published protocol: border `scale` and "y" for Set5, Set14, B100 and Urban100;
border `scale + 6` and "rgb" for DIV2K.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from liif_cli.errors import InputError, UsageError

Channel = Literal["y", "rgb"]
FloatArray = NDArray[np.float64]

# As the evaluation code of EDSR and LIIF writes them; equal to the coefficients above within 1e-6.
_LUMA = np.array([65.738, 129.057, 25.064]) / 256
_LUMA_BLACK = 16 / 255

_WINDOW = 11  # side of SSIM's Gaussian window, sigma 1.5 (Wang et al. 2004, section III-C)
_GAUSSIAN = np.exp(-0.5 * ((np.arange(_WINDOW) - _WINDOW // 2) / 1.5) ** 2)
_GAUSSIAN /= _GAUSSIAN.sum()
_C1, _C2 = 0.01**2, 0.03**2  # (K L)^2 with L = 1: they keep flat and dark windows from dividing by zero
_STRIP_ROWS = 64  # rows of windows at a time, so that the moments stay in cache


def psnr(image: NDArray[Any], truth: NDArray[Any], *, border: int, channel: Channel) -> float:
    """Peak signal-to-noise ratio in dB, `-10 log10(mean squared error)`; infinity for equal pictures.

    With "y" the error is the luma of the difference. Sums are in float64.

    Args:
        image, truth: (H, W, 3) as the module says; `image` is clamped to [0, 1].
        border: pixels shaved off each side.
        channel: "y" or "rgb".

    Raises:
        InputError: the shapes differ, are not (H, W, 3), or the border leaves nothing.
        UsageError: a negative border or an unknown channel.
    """
    shaved = _shave(image, truth, border, channel, at_least=1)
    difference = shaved[0] - shaved[1]
    if channel == "y":
        difference = difference @ _LUMA
    error = float(np.mean(np.square(difference)))
    return -10.0 * math.log10(error) if error != 0 else math.inf


def ssim(image: NDArray[Any], truth: NDArray[Any], *, border: int, channel: Channel) -> float:
    """Structural similarity (Wang et al. 2004), at most 1, which means equal.

    A Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance; the mean over the windows
    that lie wholly inside the shaved picture. With "y" of the luma in units of [0, 1], with "rgb" the mean over the
    channels.

    Args and Raises: as `psnr`; the border must leave 11 pixels a side.
    """
    shaved = _shave(image, truth, border, channel, at_least=_WINDOW)
    a, b = ((x @ _LUMA + _LUMA_BLACK)[..., None] if channel == "y" else x for x in shaved)
    total, windows = 0.0, a.shape[0] - _WINDOW + 1  # rows of windows
    for top in range(0, windows, _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS + _WINDOW - 1)
        total += float(_similarity(a[rows], b[rows]).sum())
    return total / float(windows * (a.shape[1] - _WINDOW + 1) * a.shape[2])


def _similarity(a: FloatArray, b: FloatArray) -> FloatArray:
    """SSIM of every window: (H, W, C) twice to (H - 10, W - 10, C). Equation 13."""
    mean_a, mean_b, aa, bb, ab = _blur(np.stack([a, b, a * a, b * b, a * b]))
    cross = mean_a * mean_b
    squares = mean_a**2 + mean_b**2
    luminance = (2 * cross + _C1) / (squares + _C1)
    structure = (2 * (ab - cross) + _C2) / (aa + bb - squares + _C2)
    result: FloatArray = luminance * structure
    return result


def _blur(planes: FloatArray) -> FloatArray:
    """Gaussian means over the windows inside (N, H, W, C)."""
    rows, columns = (n - _WINDOW + 1 for n in planes.shape[1:3])
    down = np.zeros_like(planes[:, :rows])
    for i, weight in enumerate(_GAUSSIAN):
        down += weight * planes[:, i : i + rows]
    across = np.zeros_like(down[:, :, :columns])
    for i, weight in enumerate(_GAUSSIAN):
        across += weight * down[:, :, i : i + columns]
    return across


def _shave(
    image: NDArray[Any], truth: NDArray[Any], border: int, channel: str, at_least: int
) -> tuple[FloatArray, FloatArray]:
    """Both pictures in float64 units of [0, 1] without their border."""
    if border < 0:
        raise UsageError(f"a border of {border} pixels: it must be 0 or more")
    if channel not in ("y", "rgb"):
        raise UsageError(f'unknown channel "{channel}": use "y" or "rgb"')
    if image.shape != truth.shape or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"cannot compare pictures of shapes {image.shape} and {truth.shape}: both must be (H, W, 3)")
    height, width = image.shape[:2]
    if min(height, width) - 2 * border < at_least:
        raise InputError(
            f"a picture of {height}x{width} less a border of {border} on each side is too small to score: "
            f"{at_least}x{at_least} must remain"
        )
    inside = (slice(border, height - border), slice(border, width - border))
    return np.clip(_unit(image[inside]), 0.0, 1.0), _unit(truth[inside])


def _unit(image: NDArray[Any]) -> FloatArray:
    full = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.unsignedinteger) else 1
    return np.asarray(image, np.float64) / full
