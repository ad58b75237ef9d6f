"""A picture made to fit what it is to become: another depth, no transparency."""

from dataclasses import replace

import numpy as np

from liif_cli.errors import InputError
from liif_cli.images.formats import Format
from liif_cli.images.picture import Array, Picture, full_scale
from liif_cli.images.pillow import matching_profile

_BLOCK_ROWS = 256


def fitted(
    picture: Picture, known: Format, *, depth: int | None = None, background: tuple[int, int, int] | None = None
) -> Picture:
    """Return the picture as it goes into a file of that format.

    `depth`, 8 or 16, is that of its samples. `background`, 8 bits per channel in the picture's own colours, shows
    through where it is transparent. Alpha that says nothing, being opaque everywhere, goes where the format holds none.
    """
    opaque = picture.constant_alpha is not None and picture.constant_alpha == full_scale(picture.pixels.dtype)
    if picture.has_alpha and opaque and (background is not None or not known.alpha):
        picture = replace(picture, pixels=np.ascontiguousarray(picture.colour))
    elif picture.has_alpha and background is not None:
        picture = _over(picture, background)
    if depth is not None and depth != picture.depth:
        picture = replace(picture, pixels=_with_depth(picture.pixels, depth))
    return picture


def _over(picture: Picture, background: tuple[int, int, int]) -> Picture:
    assert picture.alpha is not None
    greatest = full_scale(picture.pixels.dtype)
    ground = np.array(background, np.float32) * np.float32(greatest / 255)
    if picture.is_grey and len(set(background)) == 1:
        ground = ground[:1]
    elif picture.is_grey and picture.icc is not None:
        raise InputError("a grey picture with a colour profile takes a grey --background, such as white")
    pixels = np.empty((*picture.size, len(ground)), picture.pixels.dtype)
    for top in range(0, picture.size[0], _BLOCK_ROWS):  # floats take several times as much memory
        rows = slice(top, top + _BLOCK_ROWS)
        share = picture.alpha[rows, :, None] / np.float32(greatest)
        pixels[rows] = picture.colour[rows] * share + ground * (1 - share) + np.float32(0.5)
    return replace(picture, pixels=pixels, icc=matching_profile(picture.icc, pixels))


def _with_depth(pixels: Array, depth: int) -> Array:
    if depth == 16:
        return pixels.astype(np.uint16) * np.uint16(257)
    narrowed = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), _BLOCK_ROWS):
        rows = slice(top, top + _BLOCK_ROWS)
        narrowed[rows] = eight_bits(pixels[rows])
    return narrowed


def eight_bits(pixels: Array) -> Array:
    """16-bit samples as the nearest of 8 bits."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
