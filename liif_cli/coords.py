"""Where pixels are. Every convention of the project about coordinates stands here and nowhere else.

* Sizes are ``(height, width)``, coordinates ``(y, x)``.
* An image spans [-1, 1] on both axes; pixel ``i`` of ``n`` is centred at ``-1 + (2 i + 1) / n``.
* In *low-resolution pixel units* the centre of latent code ``i`` is at ``i``, the image spans [-0.5, m - 0.5], and
  pixel ``j`` of ``n`` painted over ``m`` codes lies at ``(j + 0.5) * m / n - 0.5``.
* A relative coordinate is ``2 * (position - code)``: the difference in [-1, 1] units times the number of codes.
* A cell is the size of one painted pixel in the same units, ``2 * m / n``: 2 where nothing is enlarged, 2 / scale in
  general.

    code 0        code 1        code 2           m = 3 codes
  |------o------|------o------|------o------|
  |---x---|---x---|---x---|---x---|---x-..       n painted pixels, x at (j + 0.5) * m / n - 0.5
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Corners(NamedTuple):
    """For each query, on one axis, the latent codes that answer it. All fields are shaped (K, ...): K = 2 codes with
    the local ensemble (lower, upper), K = 1 (the nearest) without."""

    code: Tensor  # int64, its number, in [0, count)
    relative: Tensor  # relative coordinate of the query, seen from the code
    weight: Tensor  # share of the code in the blend; sums to 1 over K


class Axis(NamedTuple):
    """A run of painted pixels along one axis of a regular grid."""

    position: Tensor  # (N,) float64, in low-resolution pixel units, in order: descending in a view turned over
    cell: float  # distance of two pixels, relative (module docstring)


def to_low_res(coords: Tensor, count: int) -> Tensor:
    """Coordinates in [-1, 1] to low-resolution pixel units over ``count`` codes."""
    return (coords + 1) * (count / 2) - 0.5


def axis(painted: int, low_res: float, *, origin: float = 0.0) -> Axis:
    """The ``painted`` pixels that cover ``low_res`` codes beginning at code edge ``origin``.

    ``origin`` and ``low_res`` may be fractions: a window of the image is painted with them. Computed in float64, since
    float32 no longer tells neighbouring pixels apart at sixty thousand a side.
    """
    step = low_res / painted
    numbers = torch.arange(painted, dtype=torch.float64, device="cpu")
    return Axis(origin + (numbers + 0.5) * step - 0.5, 2 * step)


def corners(position: Tensor, count: int, *, ensemble: bool) -> Corners:
    """The codes around each position (any shape, low-resolution pixel units) on an axis of ``count`` codes.

    With the ensemble (paper, section 3, "Local ensemble") a query is answered by the two nearest codes of each axis and
    weighed by the rectangle spanned with the diagonally opposite one: bilinear weights. Indices are clamped at the
    border, where both codes are the same one and the weights no longer matter. Without it the nearest code answers; a
    tie goes to the upper one.
    """
    if not ensemble:
        nearest = torch.floor(position + 0.5).clamp(0, count - 1)
        return Corners(nearest.long()[None], 2 * (position - nearest)[None], torch.ones_like(position)[None])
    lower = torch.floor(position)
    upper_weight = position - lower
    index = torch.stack([lower, lower + 1]).clamp(0, count - 1)
    return Corners(index.long(), 2 * (position - index), torch.stack([1 - upper_weight, upper_weight]))


def top_left_corner(position: Tensor, cell: Tensor | float, count: int) -> Corners:
    """MetaSR's rule: a query stands for its pixel's top-left corner and asks the code whose own is nearest below it.

    The relative coordinate is then in units of one low-resolution pixel, [0, 1), as Meta-SR (Hu et al., CVPR 2019) has
    it. The millionth keeps a corner that falls on a code's own, but for rounding, from going to the code before it.
    """
    edge = position + 0.5 - cell / 4  # a cell is measured in half pixels, and half of it is wanted
    index = torch.floor(edge + 0.5e-6 * count).clamp(0, count - 1)
    return Corners(index.long()[None], (edge - index)[None], torch.ones_like(edge)[None])
