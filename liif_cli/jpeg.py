"""Pictures as they come out of cameras and off the web: compressed."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def through_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """What (H, W, 3) uint8 becomes in a JPEG file of ``quality``, 1 to 100, with colour at half the resolution."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as compressed:
        return np.asarray(compressed)
