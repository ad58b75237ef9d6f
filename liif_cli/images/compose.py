"""Between a picture and the network: what it sees, and how its answers become pixels again. The only rounding.

The network knows three channels without alpha. So grey is replicated to three and averaged back to one; alpha, where
it varies, is enlarged as a picture of its own. The invisible colour of transparent pixels would bleed over the edge as
a fringe, so the network is shown the visible colours continued there instead. Multiplying colour by alpha would keep it
out as well, but puts alpha's edge into the colour, and a rim into the quotient wherever the network's two answers
differ.
"""

import numpy as np
from PIL import Image

from liif_cli.images.picture import Array, Picture, full_scale

_STRIP_ROWS = 256  # an even number


def layers(picture: Picture) -> list[Array]:
    """Return the one or two images, each (H, W, 3), contiguous and in the pixels' own type, that the network enlarges:
    colour and, only where alpha varies, alpha."""
    if picture.alpha is None or picture.constant_alpha is not None:
        return [_three(picture.colour)]
    return [_three(_continued(picture.colour, picture.alpha > 0)), _three(picture.alpha[..., None])]


def layers_bytes(picture: Picture) -> int:
    """What `layers` takes beside the picture, at most, while it works: copies of grey and of what is transparent, and
    for the second a quarter of the pixels in float32 a few times over."""
    if picture.channels == 3:
        return 0
    sample = picture.pixels.itemsize
    alpha = picture.has_alpha and picture.constant_alpha is None
    return picture.size[0] * picture.size[1] * (6 * sample + 22 if alpha else 3 * sample)


def _continued(colour: Array, visible: Array) -> Array:
    """Replace what is not visible (H, W) of colour (H, W, C) by a smooth continuation of what is."""
    if visible.all():
        return colour
    filled = colour.copy()
    if max(visible.shape) > 1:
        _pull_push(filled, visible)
    return filled


def _pull_push(colour: Array, weight: Array) -> None:
    """Fill in, in place, where weight (H, W), in [0, 1], lacks to 1 by what half the resolution, filled in the same
    way, has there. In strips, so that nothing of this resolution is held in float32 that was not before.

    Gortler and others, "The lumigraph", 1996, section 3.4. ``colour`` (H, W, C) may be of integers.
    """
    height, width = weight.shape
    strips = [slice(top, min(top + _STRIP_ROWS, height)) for top in range(0, height, _STRIP_ROWS)]
    halves, totals = [], []
    for rows in strips:
        part = weight[rows, :, None].astype(np.float32)
        total = _halved(part)
        halves.append(_halved(colour[rows] * part) / np.where(total > 0, total, 1))
        totals.append(np.minimum(4 * total[..., 0], 1))
    coarse, total = np.concatenate(halves), np.concatenate(totals)
    del halves, totals
    if max(total.shape) > 1 and total.min() < 1:
        _pull_push(coarse, total)
    planes = [Image.fromarray(np.ascontiguousarray(coarse[..., channel])) for channel in range(colour.shape[2])]
    for rows in strips:
        part = weight[rows].astype(np.float32)
        even = rows.stop + rows.stop % 2
        box = (0, rows.start / 2, planes[0].width, even / 2)
        size = (2 * planes[0].width, even - rows.start)
        for channel, plane in enumerate(planes):
            finer = np.asarray(plane.resize(size, Image.Resampling.BILINEAR, box))[: len(part), :width]
            filled = colour[rows, :, channel] * part + finer * (1 - part)
            if np.issubdtype(colour.dtype, np.integer):
                filled += np.float32(0.5)  # and cut off
            colour[rows, :, channel] = filled


def _halved(values: Array) -> Array:
    """The means of squares of 2x2 pixels of (H, W, C); beyond an odd side there are zeros."""
    height, width, channels = values.shape
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    means: Array = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, channels).mean(axis=(1, 3))
    return means


def compose(picture: Picture, bands: list[Array]) -> Array:
    """Turn what the network made of `layers(picture)` into pixels like the picture's.

    `bands` holds one float array (h, w, 3) a layer, nominally in [0, 1], not clamped. Returns (h, w, C) in the
    picture's type: clamped, then `floor(value * greatest + 0.5)`; float pictures are clamped only. A pure grey
    picture comes out pure grey, a constant alpha exactly as it was.
    """
    colour = bands[0].astype(np.float32, copy=False)
    if picture.is_neutral:
        colour = colour.mean(axis=2, keepdims=True)
    dtype = picture.pixels.dtype
    out = np.empty((*colour.shape[:2], picture.channels), dtype)
    shades = out[..., : 1 if picture.is_grey else 3]
    if picture.constant_alpha is not None:
        out[..., -1] = picture.constant_alpha
    elif picture.has_alpha:
        out[..., -1] = _quantise(bands[1].astype(np.float32, copy=False).mean(axis=2), dtype)
    shades[...] = _quantise(colour, dtype)
    return out


def _three(image: Array) -> Array:
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _quantise(values: Array, dtype: np.dtype) -> Array:
    clamped = np.clip(values, 0, 1)
    if not np.issubdtype(dtype, np.integer):
        return clamped
    # The conversion cuts off, which is the floor of what is not negative.
    rounded: Array = (clamped * np.float32(full_scale(dtype)) + np.float32(0.5)).astype(dtype)
    return rounded
