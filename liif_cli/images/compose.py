"""Between a picture and the network: what it sees, and how its answers become pixels again. The only rounding.

The network knows three channels without alpha. So grey is replicated to three and averaged back to one; alpha, where it
varies, is enlarged as a picture of its own, and colour travels multiplied by it: otherwise the invisible colour of
transparent pixels would bleed over the edge as a fringe.
"""

import numpy as np

from liif_cli.images.picture import Array, Picture, full_scale


def layers(picture: Picture) -> list[Array]:
    """Return the one or two images, each (H, W, 3) and contiguous, that the network enlarges.

    First colour: in the pixels' own integer type, or float32 in [0, 1] where it is multiplied by a varying alpha.
    Then, only where alpha varies, alpha in the pixels' own type.
    """
    if picture.alpha is None or picture.constant_alpha is not None:
        return [_three(picture.colour)]
    greatest = full_scale(picture.pixels.dtype)
    premultiplied = picture.colour.astype(np.float32)
    premultiplied *= picture.alpha[..., None] / np.float32(greatest)
    premultiplied /= np.float32(greatest)
    return [_three(premultiplied), _three(picture.alpha[..., None])]


def compose(picture: Picture, bands: list[Array]) -> Array:
    """Turn what the network made of `layers(picture)` into pixels like the picture's.

    `bands` holds one float array (h, w, 3) a layer, nominally in [0, 1], not clamped. Returns (h, w, C) in the
    picture's type: clamped, then `floor(value * greatest + 0.5)`; float pictures are clamped only. A pure grey
    picture comes out pure grey, a constant alpha exactly as it was.
    """
    colour = bands[0].astype(np.float32)
    if picture.is_neutral:
        colour = colour.mean(axis=2, keepdims=True)
    dtype = picture.pixels.dtype
    out = np.empty((*colour.shape[:2], picture.channels), dtype)
    shades = out[..., : 1 if picture.is_grey else 3]
    if picture.constant_alpha is not None:
        out[..., -1] = picture.constant_alpha
    elif picture.has_alpha:
        alpha = bands[1].astype(np.float32).mean(axis=2)
        out[..., -1] = _quantise(alpha, dtype)
        # Where alpha rounds to nothing colour is invisible, and a quotient of two near-zeros would be noise: leave
        # black.
        visible = out[..., -1] > 0
        # By alpha before its clamping: at an edge both overshoot by the same share, which the quotient takes out again.
        colour = np.divide(colour, alpha[..., None], out=np.zeros_like(colour), where=visible[..., None])
    shades[...] = _quantise(colour, dtype)
    return out


def _three(image: Array) -> Array:
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _quantise(values: Array, dtype: np.dtype) -> Array:
    clamped = np.clip(values, 0, 1)
    if not np.issubdtype(dtype, np.integer):
        return clamped
    # NaN stays NaN through clip, and NaN as an integer is anything: make it black rather than noise.
    np.nan_to_num(clamped, copy=False, nan=0.0)
    rounded: Array = np.floor(clamped * np.float32(full_scale(dtype)) + np.float32(0.5)).astype(dtype)
    return rounded
