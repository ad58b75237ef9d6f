"""Plain arrays to pictures and back, for callers from Python."""

import numpy as np

from liif_cli.errors import InputError
from liif_cli.images.picture import Array, Picture


def from_array(array: Array) -> Picture:
    """Return a picture of (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4): uint8, uint16, or floats in [0, 1].

    Floats of any width become float32 and are never rounded. Raises InputError for other shapes and types, for floats
    outside [0, 1] by more than a rounding error, and for NaN.
    """
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] > 4):
        raise InputError(f"an image array is (H, W) or (H, W, 1 to 4) with at least one pixel, not {array.shape}")
    pixels = array[..., None] if array.ndim == 2 else array
    if np.issubdtype(array.dtype, np.floating):
        # Written so that NaN fails as well.
        if not (pixels.min() >= -1e-3 and pixels.max() <= 1 + 1e-3):
            found = f"{pixels.min():g} to {pixels.max():g}"
            raise InputError(f"float images run from 0 to 1, this one from {found}; scale or clip it first")
        pixels = np.clip(pixels.astype(np.float32), 0, 1)
    elif array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise InputError(f"image arrays are uint8, uint16 or floats in [0, 1], not {array.dtype}")
    return Picture(pixels=np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("=")))


def to_array(pixels: Array, like: Array) -> Array:
    """Return pixels (h, w, C) with the dimensions and the type of the array `like` that `from_array` was given."""
    shaped = pixels[..., 0] if like.ndim == 2 else pixels
    return shaped.astype(like.dtype, copy=False)
