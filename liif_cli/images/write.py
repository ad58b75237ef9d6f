"""Pictures to files, band by band: from memory where they fit the budget, else streamed. Whole or not at all."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image, PngImagePlugin

from liif_cli.errors import UsageError
from liif_cli.files import atomic_path, cannot_write
from liif_cli.images import metadata
from liif_cli.images.bands import Bands
from liif_cli.images.formats import Format, check_output, held_bytes, is_kept_lossless, writing_bytes
from liif_cli.images.gif import save_gif
from liif_cli.images.picture import Array, Picture
from liif_cli.images.pillow import as_channels, in_srgb
from liif_cli.images.quiet import quiet
from liif_cli.images.stream import Stream, atomic_deepzoom, iptc_segment

JPEG_QUALITY = 95
WEBP_QUALITY = 90
AVIF_QUALITY = 85
# Measured on photographs: level 4 with all filters is a quarter smaller than the fastest settings for half as much
# time again.
PNG_LEVEL = 4
TILE_QUALITY = 90


class Writer(Protocol):
    """Takes the bands of one picture, top to bottom."""

    def write(self, rows: Array) -> None:
        """Append rows, (h, width, channels) in the picture's type; they may be changed after the call returns.

        Raises ValueError for another shape or type or more rows than the picture has, OutputError when the disk is
        full.
        """


@contextlib.contextmanager
def open_writer(
    path: Path,
    size: tuple[int, int],
    like: Picture,
    *,
    format: str | None = None,
    quality: int | None = None,
    strip: bool = False,
    budget_bytes: int,
    overwrite: bool = False,
) -> Iterator[Writer]:
    """Open a picture file of `size`, with the channels, depth, profile and metadata of `like`.

    The file appears under its name when the block ends without an error and all rows were written; otherwise nothing is
    left behind. JPEG is 4:4:4 at `quality` 95 by default, WebP 90 (lossless where the source was a lossless WebP), AVIF
    85, DeepZoom tiles 90; formats without loss ignore `quality`. `strip` drops EXIF, XMP, IPTC and texts; the profile
    stays, because colours mean nothing without it. GIF has 256 colours; GIF and BMP hold neither metadata nor a
    profile, so that colours are converted to sRGB. IPTC goes into JPEG, PNG and TIFF only, texts into PNG. Up to
    `budget_bytes` may be held in memory; beyond that the picture is streamed.

    Raises what `check_output` raises, or UsageError for a quality outside 1 to 100, before the block; OutputError for a
    full disk, ValueError for missing rows.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError(f"quality is 1 to 100, not {quality}")
    known = check_output(path, size, like, format=format, strip=strip, budget_bytes=budget_bytes, overwrite=overwrite)
    of_size = carried(like, size, strip=strip)
    place = atomic_deepzoom if known.name == "DeepZoom" else atomic_path
    with place(path, overwrite=overwrite) as temporary:
        if _streamed(known, size, like, budget_bytes):
            with Stream(temporary, path, known.name, size, of_size, _stream_options(known, of_size, quality)) as stream:
                yield stream
            return
        memory = Memory(size, like)
        yield memory
        memory.check_complete()
        try:
            with quiet(), temporary.open("w+b") as file:
                _save(memory.pixels, file, known, of_size, quality)
        except (OSError, ValueError, MemoryError, RuntimeError) as error:  # the last of libavif
            raise cannot_write(path, error) from error


def write(path: Path, pixels: Array, like: Picture, **options: Any) -> None:
    """Write a whole picture, (h, w, C) in the type of `like`; options and errors are those of `open_writer`."""
    options.setdefault("budget_bytes", 1 << 62)
    with open_writer(path, (pixels.shape[0], pixels.shape[1]), like, **options) as writer:
        writer.write(pixels)


class Memory:
    """A writer that keeps its bands."""

    def __init__(self, size: tuple[int, int], like: Picture) -> None:
        self._bands = Bands(size, like)
        self.pixels = np.empty((*size, like.channels), like.pixels.dtype)

    def write(self, rows: Array) -> None:
        """See `Writer.write`."""
        top = self._bands.done
        self.pixels[top : top + rows.shape[0]] = self._bands.check(rows)

    def check_complete(self) -> None:
        """Raise ValueError where rows are missing."""
        self._bands.check_complete()


def carried(like: Picture, size: tuple[int, int], *, strip: bool) -> Picture:
    """Return the picture with its metadata as it is to be written."""
    return replace(
        like,
        exif=None if strip else metadata.resized_exif(like.exif, size),
        xmp=None if strip else metadata.resized_xmp(like.xmp, size),
        iptc=None if strip else like.iptc,
        texts=() if strip else like.texts,
    )


def writer_bytes(
    known: Format, size: tuple[int, int], like: Picture, budget_bytes: int, quality: int | None = None
) -> int:
    """Return about what `open_writer` will take with such a budget."""
    return writing_bytes(known, size, like, quality, streamed=_streamed(known, size, like, budget_bytes))


def _streamed(known: Format, size: tuple[int, int], like: Picture, budget_bytes: int) -> bool:
    # Pillow writes neither 16-bit colour nor DeepZoom, and TIFF only with its own idea of EXIF.
    needs_vips = known.name in ("TIFF", "DeepZoom") or (like.depth == 16 and like.channels > 1)
    return known.streams and (needs_vips or held_bytes(size, like) > budget_bytes)


def _stream_options(known: Format, like: Picture, quality: int | None) -> dict[str, Any]:
    if known.name == "PNG":
        return {"compression": PNG_LEVEL, "filter": "all"}
    if known.name == "JPEG":
        return {"Q": quality or JPEG_QUALITY, "subsample_mode": "off"}
    if known.name == "TIFF":
        return {"compression": "deflate", "predictor": "horizontal"}
    opaque = like.depth == 8 and not like.has_alpha
    return {"suffix": f".jpg[Q={quality or TILE_QUALITY}]" if opaque else ".png"}


def beside(like: Picture, name: str) -> dict[str, Any]:
    """Return what goes beside the pixels into a file of the format with that name, as options of Pillow's."""
    known = {"icc_profile": like.icc, "exif": like.exif, "xmp": like.xmp, "dpi": like.dpi}
    options: dict[str, Any] = {key: value for key, value in known.items() if value is not None}
    if name == "PNG":
        options.pop("xmp", None)  # which Pillow would not write
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for chunk in metadata.png_texts(like):
            options["pnginfo"].add(*chunk)
    if name == "AVIF" and like.exif is not None:
        # Which turns pictures by a field of its own. Pillow writes EXIF anew to take this one out, and damages it.
        options["exif"] = metadata.without_orientation(like.exif)
    if name == "WebP" and like.exif is not None:
        options["exif"] = like.exif.removeprefix(metadata.PREFIX)  # as Pillow does it, but not where pictures move
    if name == "JPEG" and like.iptc is not None:
        options["extra"] = iptc_segment(like.iptc)
    return options


def _save(pixels: Array, file: BinaryIO, known: Format, like: Picture, quality: int | None) -> None:
    image = Image.fromarray(pixels[..., 0] if like.channels == 1 else pixels)
    no_profile = known.name in ("GIF", "BMP") or (known.name in ("WebP", "AVIF") and like.is_grey)
    if no_profile and like.icc is not None:
        # GIF and BMP hold none; WebP and AVIF hold colour only, which a grey profile does not describe.
        image, like = in_srgb(image, like.icc), replace(like, icc=None)
    options = beside(like, known.name)
    if known.name == "PNG":
        image.save(file, "PNG", compress_level=PNG_LEVEL, **options)
    elif known.name == "JPEG":
        image.save(file, "JPEG", quality=quality or JPEG_QUALITY, subsampling=0, **options)
    elif known.name == "WebP":
        lossless = is_kept_lossless(like, quality, moving=False)
        # Exact: colour under transparent pixels is ours to keep only where nothing is lost anyway.
        image.save(file, "WEBP", lossless=lossless, exact=lossless, quality=quality or WEBP_QUALITY, **options)
    elif known.name == "AVIF":
        image.save(file, "AVIF", quality=quality or AVIF_QUALITY, subsampling="4:4:4", **options)
    elif known.name == "GIF":
        save_gif(file, [as_channels(image)], [0], 1)
    else:
        image.save(file, known.name, dpi=like.dpi or (96, 96))
