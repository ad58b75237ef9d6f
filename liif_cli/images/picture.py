"""One picture, upright, with all that must survive its enlargement.

Conventions: arrays are (height, width, channels), top row first; sizes are (height, width). Channels are 1 grey, 2
grey and alpha, 3 RGB, 4 RGB and alpha; alpha is straight (colour is not multiplied by it). Integer samples run from 0
to the greatest value of their type, float samples from 0 to 1.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Picture:
    """One frame: pixels and what is carried over beside them.

    `pixels` is (H, W, C), uint8 or uint16; float32 in [0, 1] only where a caller handed in floats, never from a file.
    `icc` is the profile of these pixels (never a CMYK one). `exif` begins with `Exif\\0\\0`; its orientation is 1 and
    its thumbnail is gone. `xmp` is the packet. `format` is the source's, in Pillow's words ("PNG", "JPEG", "WEBP",
    ...). `dpi` is (horizontal, vertical). `lossless` says whether the source's compression kept every sample. `iptc` is
    what agencies write of a picture, as records of IIM. `texts` are a PNG file's, (keyword, text) each.
    `jpeg_quality` is that of a JPEG file, about: 1 to 100.
    """

    pixels: Array
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    format: str = "PNG"
    dpi: tuple[float, float] | None = None
    lossless: bool = True
    iptc: bytes | None = None
    texts: tuple[tuple[str, str], ...] = ()
    jpeg_quality: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def channels(self) -> int:
        """1, 2, 3 or 4."""
        return int(self.pixels.shape[2])

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.channels in (2, 4)

    @property
    def is_grey(self) -> bool:
        """Whether colour is one channel."""
        return self.channels <= 2

    @property
    def depth(self) -> int:
        """Bits a sample: 8, 16, or 32 for floats."""
        return int(self.pixels.dtype.itemsize) * 8

    @property
    def colour(self) -> Array:
        """The channels without alpha, (H, W, 1 or 3); a view."""
        return self.pixels[..., :-1] if self.has_alpha else self.pixels

    @property
    def alpha(self) -> Array | None:
        """Alpha, (H, W); a view."""
        return self.pixels[..., -1] if self.has_alpha else None

    @cached_property
    def is_neutral(self) -> bool:
        """Whether every pixel that can be seen is a pure grey, in one channel or in three equal ones."""
        if self.is_grey:
            return True
        red, green, blue = (self.pixels[..., channel] for channel in range(3))
        coloured = (red != green) | (red != blue)
        if self.alpha is not None and self.constant_alpha is None:
            coloured &= self.alpha > 0
        return not coloured.any()

    @cached_property
    def constant_alpha(self) -> Any:
        """The one value of alpha, of the pixels' type, or None where there is no alpha or it varies."""
        if self.alpha is None or not (self.alpha == self.alpha[0, 0]).all():
            return None
        return self.alpha[0, 0]


def full_scale(dtype: Any) -> float:
    """Return what stands for 1.0: 255, 65535, or 1 for floats."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0
