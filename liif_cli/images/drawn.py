"""What a computer drew (screenshots, charts, line art, lettering), told from photographs by its pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from liif_cli.images.picture import Picture, full_scale

# So many pixels tell, and take next to no memory of a picture that is hardly held itself.
MOST_PIXELS = 2**18
# Neighbours further apart than this share of the range are an edge. (Old palettes' colours lie exactly so far apart.)
EDGE = 1 / 5
LEAST_EDGES = 30  # fewer tell nothing
# By benchmarks/drawn.py 23 of 24 screenshots, charts and drawings look drawn (not a logo, all smooth), and none of 201
# photographs does, whole or at a third of its size; as JPEG files of quality 95 and 98 it is the same. Hard edges:
# photographs have 1.5 % at most where they have edges at all, letters of pixels and unsmoothed lines two thirds.
HARD_SHARE, LEAST_EDGES_SHARE = 0.06, 0.003
# Equal neighbours, times the edges among the others: photographs come to 0.037, screens to 0.26 and more.
SCREEN = 0.06


class Look(NamedTuple):
    """What a picture's horizontal neighbours are like, but for those that are both transparent; shares in [0, 1]."""

    edges: int
    edges_share: float  # of all neighbours
    hard: float  # of the edges: those between areas of exactly one colour, as a camera makes none
    equal: float  # of all neighbours
    abrupt: float  # of the neighbours that differ: the edges


def look_at(picture: Picture) -> Look:
    """Look at some rows of a picture, all of it if it is small, always the same."""
    height, width = picture.size
    # At random, since lines of text and grids have rhythms.
    many = min(height, max(1, MOST_PIXELS // width))
    chosen = np.sort(np.random.default_rng(0).choice(height, many, replace=False))
    rows = picture.pixels[chosen, :MOST_PIXELS]
    visible = np.ones(rows.shape[:2], bool)
    if picture.has_alpha:  # whose edges are edges, too
        visible = rows[..., -1] > 0
        rows = np.where(visible[..., None], rows, 0)
    left, right, seen = rows[:, :-1], rows[:, 1:], visible[:, :-1] | visible[:, 1:]
    apart = (np.maximum(left, right) - np.minimum(left, right)).max(axis=2)
    edges, equal = apart > full_scale(rows.dtype) * EDGE, apart == 0
    # Between even areas, or a line one pixel wide in one.
    line = (rows[:, 1:-2] == rows[:, 3:]).all(axis=2)
    hard = edges[:, 1:-1] & equal[:, :-2] & (equal[:, 2:] | line)
    count, total, differing = int(edges.sum()), max(1, int(seen.sum())), int((~equal).sum())
    return Look(count, count / total, hard.sum() / max(1, count), 1 - differing / total, count / max(1, differing))


def looks_drawn(picture: Picture) -> bool:
    """Whether a picture has hard edges, or even areas that end abruptly, as no camera makes them."""
    look = look_at(picture)
    if look.edges < LEAST_EDGES:
        return False
    if look.edges_share >= LEAST_EDGES_SHARE and look.hard >= HARD_SHARE:
        return True
    return look.equal * look.abrupt >= SCREEN
