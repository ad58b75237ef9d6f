"""Areas of one colour, which stay that colour to the last bit.

A network answers a little beside it: by up to 10 levels of 255 along the frame, where it sees zeros beyond, and by a
faint pattern inside. On a page of the same colour that shows. What is one colour as far around as this looks is no
photograph's noise, nor a plateau of most JPEG files, whose blocks a network is to smooth: they reach less far.
"""

import numpy as np
from numpy.typing import NDArray

from liif_cli.images.picture import Array, full_scale
from liif_cli.sizing import Box, Size, whole

_PIXELS_AT_ONCE = 2**18
REACH = 8  # input pixels on each side; what lies beyond the picture does not count


def keep_flat(image: Array, band: Array, top: int, size: Size, box: Box | None = None) -> Array:
    """Give the rows from ``top`` on, (h, W, 3) floats, of an enlargement of ``image``, (H, W, 3), the colour of the
    image where the four pixels around have the same colour as all within ``REACH`` of them; in place, where that can be
    written to.

    ``size`` is that of the whole output and ``box`` the window it shows.
    """
    box = box or whole((image.shape[0], image.shape[1]))
    rows = _pair(np.arange(top, top + len(band)), size[0], (box.top, box.bottom), image.shape[0])
    columns = _pair(np.arange(size[1]), size[1], (box.left, box.right), image.shape[1])
    first, stop = int(rows[0].min()), int(rows[1].max()) + 1
    # Of a window no more is looked at than matters to it.
    left, right = max(0, int(columns[0].min()) - REACH), int(columns[1].max()) + 1 + REACH
    image, columns = image[:, left:right], (columns[0] - left, columns[1] - left)
    flat = _flat(image, first, stop)
    if not flat.any():
        return band
    band = band if band.flags.writeable else band.copy()
    greatest = full_scale(image.dtype) if np.issubdtype(image.dtype, np.integer) else 1
    step = max(1, _PIXELS_AT_ONCE // size[1])
    for start in range(0, len(band), step):
        before, after = (pair[start : start + step] for pair in rows)
        both = flat[before - first] & flat[after - first]
        inside = both[:, columns[0]] & both[:, columns[1]]
        if inside.any():
            colours = image[before][:, columns[0]].astype(np.float32) / np.float32(greatest)
            np.copyto(band[start : start + step], colours, where=inside[..., None])
    return band


def _pair(numbers: NDArray[np.int64], wanted: int, span: tuple[float, float], length: int) -> tuple[Array, Array]:
    """The pixels of an axis before and after each of the output's; one and the same where they lie on each other."""
    place = span[0] + (numbers + 0.5) * ((span[1] - span[0]) / wanted) - 0.5
    before, after = np.floor(place + 1e-9), np.ceil(place - 1e-9)  # but for rounding
    return before.astype(np.int64).clip(0, length - 1), after.astype(np.int64).clip(0, length - 1)


def _flat(image: Array, first: int, stop: int) -> Array:
    """Of some rows which pixels have the colour of all around them: (stop - first, W) bool."""
    height, width = image.shape[:2]
    above, below = max(0, first - REACH), min(height, stop + REACH)
    part = image[above:below]
    rows, columns = np.arange(first, stop), np.arange(width)
    tops, bottoms = (rows - REACH).clip(above) - above, (rows + REACH).clip(max=below - 1) - above
    lefts, rights = (columns - REACH).clip(0), (columns + REACH).clip(max=width - 1)
    # From each pixel to the one below, and to the one on its right.
    down, across = (part[1:] != part[:-1]).any(axis=2), (part[:, 1:] != part[:, :-1]).any(axis=2)
    changes = _sums(down, tops, bottoms, lefts, rights + 1) + _sums(across, tops, bottoms + 1, lefts, rights)
    flat: Array = changes == 0
    return flat


def _sums(values: Array, tops: Array, bottoms: Array, lefts: Array, rights: Array) -> Array:
    """Sums of rectangles, one for each pair of rows and of columns, which end before the second."""
    sums = np.pad(values.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32), ((1, 0), (1, 0)))
    found: Array = sums[bottoms][:, rights] - sums[bottoms][:, lefts] - sums[tops][:, rights] + sums[tops][:, lefts]
    return found
