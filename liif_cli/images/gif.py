"""Pictures to GIF files: 256 colours a frame, the most frequent exact and others dithered, and transparency that is
whole or none. And the frames of GIF files, each as a file of its own."""

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from liif_cli.images.picture import Array

_CONTROL = 0xF9  # the extension that says how the next frame is shown
_TRANSPARENT = 255
_SHORTEST, _LONGEST = 2, 0xFFFF  # hundredths of a second
_MOST_REPEATS = 0xFFFF
_EXACT = 64  # colours of a picture of more than its palette's that are kept as they are, if a thousandth of it has them


class Part(NamedTuple):
    """A frame of a GIF file: what it draws, as a file of its own, and how."""

    alone: bytes
    place: tuple[int, int, int, int]  # left, top, right, bottom; perhaps beyond the screen
    duration_ms: int
    disposal: int  # 2: what it drew is cleared; 3, and as browsers have it 4: what was there comes back


def parts(content: bytes) -> Iterator[Part]:
    """Take a GIF file apart. Pillow draws its frames on one another otherwise than browsers do: it fills what nothing
    was drawn on, and what is cleared, with colours of the palette, and knows no frames in colour after grey ones.

    Raises struct.error or IndexError where the file is damaged.
    """
    head = 13 + _palette_bytes(content[10])
    at, control = head, b""
    while at < len(content) and content[at] != ord(";"):
        if content[at] == ord("!"):
            end = _behind_blocks(content, at + 2)
            if content[at + 1] == _CONTROL and content[at + 2] == 4:
                control = content[at:end]
        elif content[at] == ord(","):
            left, top, width, height, flags = struct.unpack_from("<HHHHB", content, at + 1)
            end = _behind_blocks(content, at + 10 + _palette_bytes(flags) + 1)
            screen = content[:6] + struct.pack("<HH", width, height) + content[10:head]
            drawn = b"," + bytes(4) + content[at + 5 : end]
            how, delay = struct.unpack_from("<BH", control, 3) if control else (0, 0)
            # Ended properly, where the file is cut short: whether anything is missing, the decoder knows.
            alone = screen + control + drawn + b"\0;"
            yield Part(alone, (left, top, left + width, top + height), 10 * delay, how >> 2 & 7)
            control = b""
        else:
            end = at + 1  # what some programs leave between blocks
        at = end


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _behind_blocks(content: bytes, at: int) -> int:
    while at < len(content) and content[at]:
        at += 1 + content[at]
    return at + 1


def save_gif(file: BinaryIO, frames: Sequence[Array], durations_ms: Sequence[int], plays: int) -> None:
    """Write frames, each (H, W, C) uint8 of one size; alpha of at least half becomes opaque.

    `plays` is how often, 0 for ever. Raises OSError or ValueError.
    """
    transparent = any(frame.shape[2] in (2, 4) and bool((frame[..., -1] < 128).any()) for frame in frames)
    images = [_palettised(frame, transparent) for frame in frames]
    if transparent:
        _colour_holes(images)
    options: dict[str, Any] = {"transparency": _TRANSPARENT} if transparent else {}
    if len(images) > 1:
        # Frames with holes must not show the one before through them: 2 clears the canvas after each.
        options |= {
            "append_images": images[1:],
            "duration": _whole_hundredths(durations_ms),
            "disposal": 2 if transparent else 1,
        }
        if plays != 1:  # a GIF says how often it begins anew
            options["loop"] = max(0, min(plays - 1, _MOST_REPEATS))
    try:
        images[0].save(file, "GIF", save_all=len(images) > 1, optimize=False, **options)
    except (OverflowError, struct.error) as error:  # Pillow shows frames that are alike as one
        raise ValueError(f"{_LONGEST // 100} seconds are the most that GIF shows a frame; use .webp or .png") from error


def _whole_hundredths(durations_ms: Sequence[int]) -> list[int]:
    """What GIF can say, of a second, and no frame so short that browsers slow it down; the whole takes as long, but for
    such frames."""
    ends = np.rint(np.cumsum(durations_ms) / 10).astype(int)
    return [10 * min(max(_SHORTEST, int(step)), _LONGEST) for step in np.diff(ends, prepend=0)]


def _palettised(frame: Array, transparent: bool) -> Image.Image:
    has_alpha = frame.shape[2] in (2, 4)
    colour = np.ascontiguousarray(frame[..., :-1] if has_alpha else frame)
    hidden = frame[..., -1] < 128 if transparent and has_alpha else None
    if hidden is not None and hidden.any() and not hidden.all():
        colour[hidden] = colour[~hidden][0]  # what nobody sees takes no colour of the palette
    # One colour fewer where the last index stands for holes.
    indices, palette = _indexed(np.broadcast_to(colour, (*colour.shape[:2], 3)), _TRANSPARENT if transparent else 256)
    if hidden is not None:
        indices[hidden] = _TRANSPARENT
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    return image


def _indexed(colour: Array, most: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(H, W, 3) uint8 as (H, W) indices and the palette, (n, 3). Few colours stay as they are; of many, those of which
    there are areas: Pillow alone would make white a little grey, and look others up in steps of four levels."""
    packed = colour[..., 0].astype(np.uint32)
    for channel in (1, 2):
        packed <<= 8
        packed |= colour[..., channel]
    colours, counts = np.unique(packed, return_counts=True)
    if len(colours) <= most:
        indices = np.empty(packed.shape, np.uint8)
        for row, line in zip(indices, packed, strict=True):
            row[:] = np.searchsorted(colours, line)
        return indices, _unpacked(colours)
    often = counts >= packed.size / 1000
    kept = np.sort(colours[often][np.argsort(counts[often])[::-1][:_EXACT]])
    del colours, counts, often
    image = Image.fromarray(np.ascontiguousarray(colour))
    of_all = image.quantize(most - len(kept), method=Image.Quantize.MEDIANCUT)
    medians = np.array(of_all.getpalette(), np.uint8).reshape(-1, 3)[: most - len(kept)]
    palette = np.concatenate([_unpacked(kept), medians])
    of_all.putpalette(palette.tobytes())
    indices = np.array(image.quantize(palette=of_all, dither=Image.Dither.FLOYDSTEINBERG))
    for row, line in zip(indices, packed, strict=True):
        if len(kept):
            places = np.searchsorted(kept, line).clip(max=len(kept) - 1)
            np.copyto(row, places.astype(np.uint8), where=kept[places] == line)
    return indices, palette


def _unpacked(colours: NDArray[np.uint32]) -> NDArray[np.uint8]:
    return np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.uint8)


def _colour_holes(images: Sequence[Image.Image]) -> None:
    """Give the index of the holes, in all palettes, one colour that no frame has: Pillow, which stores of a frame what
    differs from the one before, compares colours. A later frame that is nothing but a hole gets another: where nothing
    differs from its background Pillow would begin the file anew."""
    palettes = [np.array(image.getpalette(), np.int64)[: 3 * _TRANSPARENT].reshape(-1, 3) for image in images]
    taken = {int(colour) for palette in palettes for colour in palette @ (1 << 16, 1 << 8, 1)}
    hole, empty = itertools.islice((colour for colour in range(1 << 24) if colour not in taken), 2)
    for number, (image, palette) in enumerate(zip(images, palettes, strict=True)):
        free = empty if number and image.getextrema() == (_TRANSPARENT, _TRANSPARENT) else hole
        padded = np.zeros((_TRANSPARENT + 1, 3), np.uint8)
        padded[: len(palette)] = palette
        padded[_TRANSPARENT] = free >> 16, free >> 8 & 255, free & 255
        image.putpalette(padded.tobytes())
