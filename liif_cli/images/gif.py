"""Pictures to GIF files: 256 colours a frame, dithered, and transparency that is whole or none."""

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from liif_cli.images.picture import Array

_TRANSPARENT = 255


def save_gif(file: BinaryIO, frames: Sequence[Array], durations_ms: Sequence[int], loop: int | None) -> None:
    """Write frames, each (H, W, C) uint8 of one size; alpha of at least half becomes opaque.

    `loop` is how often it repeats, 0 for ever, None for a picture that plays once. Raises OSError or ValueError.
    """
    transparent = any(frame.shape[2] in (2, 4) and bool((frame[..., -1] < 128).any()) for frame in frames)
    images = [_palettised(frame, transparent) for frame in frames]
    options: dict[str, Any] = {"transparency": _TRANSPARENT} if transparent else {}
    if len(images) > 1:
        # Frames with holes must not show the one before through them: 2 clears the canvas after each.
        options |= {"append_images": images[1:], "duration": list(durations_ms), "disposal": 2 if transparent else 1}
        options |= {"loop": loop} if loop is not None else {}
    images[0].save(file, "GIF", save_all=len(images) > 1, optimize=False, **options)


def _palettised(frame: Array, transparent: bool) -> Image.Image:
    has_alpha = frame.shape[2] in (2, 4)
    colour = np.ascontiguousarray(frame[..., :-1] if has_alpha else frame)
    image = Image.fromarray(colour[..., 0] if colour.shape[2] == 1 else colour).convert("RGB")
    # One colour fewer where the last index stands for holes.
    palette = image.quantize(_TRANSPARENT if transparent else 256, method=Image.Quantize.MEDIANCUT)
    indexed = image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    if not (transparent and has_alpha):
        return indexed
    indices = np.asarray(indexed).copy()
    indices[frame[..., -1] < 128] = _TRANSPARENT
    return _with_palette(indices, indexed)


def _with_palette(indices: Array, like: Image.Image) -> Image.Image:
    image = Image.frombytes("P", like.size, indices.tobytes())
    colours = like.getpalette() or []
    image.putpalette(colours + [0] * (768 - len(colours)))
    return image
