"""How large: sizes, windows and what somebody asks for. Without torch, since errors and previews need no more."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

from liif_cli.errors import InputError, UsageError

Size = tuple[int, int]  # (height, width)


class Box(NamedTuple):
    """A window of the image, in its pixels; fractions allowed."""

    top: float
    left: float
    bottom: float
    right: float


def whole(image: Size) -> Box:
    """The box that is all of an image."""
    return Box(0.0, 0.0, float(image[0]), float(image[1]))


def box_sides(image: Size, box: Box | None) -> tuple[float, float]:
    """Height and width of a window, or of all of an image, in its pixels: fractions where the window has them."""
    if box is None:
        return image
    if not all(map(math.isfinite, box)):
        raise InputError(f"the box {', '.join(map(str, box))} (top, left, bottom, right): its sides must be numbers")
    top, left, bottom, right = map(exact, box)
    return float(bottom - top), float(right - left)


def _is_positive(number: Any) -> bool:
    try:
        return not isinstance(number, str) and 0 < float(number) < math.inf
    except (TypeError, ValueError, OverflowError):
        return False


class Sizing(NamedTuple):
    """How large the output shall be; exactly one field is set.

    ``size`` is (height, width); ``width``, ``height``, ``longest`` (pixels) and ``megapixels`` keep the proportions.
    """

    scale: float | None = None
    size: Size | None = None
    width: int | None = None
    height: int | None = None
    longest: int | None = None
    megapixels: float | None = None

    def resolve(self, image: tuple[float, float]) -> Size:
        """The output size for an image, or for a window of it, of size (height, width). At least 1 a side.

        Raises UsageError for a value that is not positive and finite, or when not exactly one is given.
        """
        given = {name: value for name, value in self._asdict().items() if value is not None}
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise UsageError(f"the output needs a size; give exactly one of {', '.join(self._fields)}, not {got}")
        for name, value in given.items():
            numbers = value if isinstance(value, tuple | list) else (value,)
            if not all(map(_is_positive, numbers)):
                raise UsageError(f"{name} must be a number above 0, not {value}")
        height, width = image
        if self.size is not None:
            if not isinstance(self.size, tuple | list) or len(self.size) != 2:
                raise UsageError(f"size must be (height, width), not {self.size!r}")
            if any(side != int(side) for side in self.size):
                raise UsageError(f"size must be whole numbers of pixels, not {self.size!r}")
            return int(self.size[0]), int(self.size[1])
        if self.scale is not None:
            return output_size(image, self.scale)
        if self.width is not None:
            return output_size((height, 1), Fraction(self.width) / exact(width))[0], self.width
        if self.height is not None:
            return self.height, output_size((width, 1), Fraction(self.height) / exact(height))[0]
        if self.longest is not None:
            return output_size(image, self.longest / exact(max(image)))
        assert self.megapixels is not None
        return output_size(image, math.sqrt(self.megapixels * 1e6 / (height * width)))

    @property
    def label(self) -> str | None:
        """How the file name tells the size, ``x2.7``; None where it is told in pixels."""
        return None if self.scale is None else f"x{self.scale:.15g}"


def output_size(size: tuple[float, float], scale: float | Fraction) -> tuple[int, int]:
    """The size a picture of ``size``, or a window with fractions, has after scaling: ``floor(n * scale + 1/2)`` a side,
    at least 1.

    Computed exactly: 100 pixels times 1.005 are 100.5 and so 101, though the float is a little below.
    """
    height, width = (max(1, math.floor(exact(n) * exact(scale) + Fraction(1, 2))) for n in size)
    return height, width


def exact(number: float | Fraction) -> Fraction:
    """A number as a fraction, a float standing for the decimal number it is written as."""
    return number if isinstance(number, Fraction) else Fraction(repr(float(number)))
