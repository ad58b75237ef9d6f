"""What a computer drew (screenshots, charts, line art, lettering), told from photographs by its pixels."""

from __future__ import annotations

import numpy as np

from liif_cli.images.picture import Picture, full_scale

# Some rows tell, and take next to no memory of a picture that is hardly held itself.
MOST_PIXELS = 2**18
EDGE = 1 / 5  # of the range, between neighbours
LEAST_EDGES = 30
# Measured on 190 photographs and benchmark pictures and on 23 screenshots, charts and icons, among them nine whole
# screens with smoothed letters. Of a photograph's edges at most 2 % stand between areas of one colour, but where there
# is hardly any edge; in line art 10 to 70 %.
HARD_SHARE, LEAST_EDGES_SHARE = 0.06, 0.003
# Of a photograph's neighbours at most 59 % are equal, on a screen 93 % and more. Of those that differ a quarter at most
# are edges in a photograph, on a screen 27 % and more. Where JPEG of quality 95 has touched a screen, 69 % and more of
# all are equal, and 7 to 26 % of the others edges.
EQUAL_SHARE, EDGE_SHARE, LOSSY_EDGE_SHARE = 2 / 3, 0.2, 0.08


def looks_drawn(picture: Picture) -> bool:
    """Whether a picture has edges, or even areas, as no camera makes them. What is transparent does not count."""
    height, width = picture.size
    look = np.s_[:: -(-height * width // MOST_PIXELS), :MOST_PIXELS]
    rows = picture.pixels[look]
    if rows.shape[1] < 4:
        return False
    visible = np.ones(rows.shape[:2], bool)
    if picture.has_alpha:  # whose edges are edges, too
        visible = rows[..., -1] > 0
        rows = np.where(visible[..., None], rows, 0)
    left, right, seen = rows[:, :-1], rows[:, 1:], visible[:, :-1] | visible[:, 1:]
    apart = (np.maximum(left, right) - np.minimum(left, right)).max(axis=2)
    edges, equal = apart >= full_scale(rows.dtype) * EDGE, apart == 0
    count, total = int(edges.sum()), int(seen.sum())
    if count < LEAST_EDGES:
        return False
    # Hard edges: between even areas, or a line one pixel wide in one.
    before, after = equal[:, :-2], equal[:, 2:]
    line = (rows[:, 1:-2] == rows[:, 3:]).all(axis=2)
    hard = edges[:, 1:-1] & before & (after | line)
    if count >= LEAST_EDGES_SHARE * total and hard.sum() >= HARD_SHARE * count:
        return True
    differing = int((~equal).sum())
    least_edges = EDGE_SHARE if picture.lossless else LOSSY_EDGE_SHARE
    return differing <= (1 - EQUAL_SHARE) * total and count >= least_edges * differing
