"""What a picture file says of itself, without decoding its pixels."""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from liif_cli.images import metadata
from liif_cli.images.picture import Picture
from liif_cli.images.pillow import matching_profile, orientation_of, raw_exif, raw_xmp
from liif_cli.images.quiet import quiet
from liif_cli.images.read import (
    DEFAULT_MAX_PIXELS,
    OF_NO_DEVICE,
    Opened,
    Source,
    brands,
    check_pixels,
    decoding,
    fills_screen,
    is_for_pillow,
    is_tiff,
    opened,
    png_depth,
    recognise,
    seen_bands,
    tiff_info,
)

_TAIL_BYTES = 1 << 17
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_CMYK_AND_LAB = ("CMYK", "LAB")
# What reading takes for each byte of the pixels, at most, measured with 24 megapixels: what a decoder holds (Pillow
# four bytes a pixel) and what it hands over. Of moving pictures one frame after the other is decoded.
_READING = {"TIFF": 1.3, "JPEG": 2.8, "BMP": 2.8, "PNG": 3.0, "GIF": 3.0, "HEIF": 3.0, "AVIF": 3.5, "WEBP": 6.0}
_READING_CONVERTED, _READING_FRAMES = 4.0, 2.0


@dataclass(frozen=True)
class Header:
    """What the picture will be once it is read: `size` (height, width) upright, `channels` and `depth` as in `Picture`.

    `frames` is more than 1 for what `read_animation` takes. `format` is in Pillow's words. `icc`, `exif`, `xmp` and
    `iptc` are what stands before the pixels.
    """

    size: tuple[int, int]
    channels: int
    depth: int
    format: str
    frames: int = 1
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    converted: bool = False  # whether its colours are not RGB's in the file, but CMYK's or Lab's

    @property
    def bytes(self) -> int:
        """What the pixels of all frames will take in memory."""
        return self.size[0] * self.size[1] * self.channels * (self.depth // 8) * self.frames

    @property
    def reading_bytes(self) -> int:
        """About what is taken at most while they are read."""
        if self.frames > 1:
            return int(_READING_FRAMES * self.bytes)
        return int(
            (_READING_CONVERTED if self.converted else _READING.get(self.format, _READING_CONVERTED)) * self.bytes
        )

    def blank(self) -> Picture:
        """Return a picture of this kind that takes no memory, to ask `check_output` about; all of it is opaque."""
        white = np.uint16(65535) if self.depth == 16 else np.uint8(255)
        pixels = np.broadcast_to(white, (*self.size, self.channels))
        return Picture(
            pixels,
            icc=matching_profile(self.icc, pixels),
            exif=metadata.upright_exif(self.exif),
            xmp=metadata.upright_xmp(self.xmp),
            format=self.format,
            iptc=self.iptc,
        )


def read_header(source: Source, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Header:
    """Return what a picture file says of itself. Its pixels may turn out to be damaged all the same.

    Raises InputError as `read` does for what is no picture, or larger than `max_pixels`.
    """
    with opened(source) as file, quiet():
        with decoding(file.name):
            header = _of_tiff(file) if is_tiff(file) else _by_pillow(file)
        check_pixels(file.name, header.size[0] * header.size[1] * header.frames, max_pixels)
        return header


def may_move(path: Path) -> bool:
    """Whether an ordinary file may be an animation, by its first bytes alone: Pillow reads WebP and AVIF to the end."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError:
        return False
    if head[8:12] == b"WEBP":
        return head[12:16] == b"VP8X" and len(head) > 20 and bool(head[20] & 2)
    return head.startswith((b"GIF8", b"\x89PNG")) or b"avis" in brands(head)


def _by_pillow(file: Opened) -> Header:
    with recognise(file) as image:
        kind = str(image.format)
        frames = int(getattr(image, "n_frames", 1)) if kind in ANIMATED else 1
        # The still picture of an APNG file is not part of the animation.
        frames = max(1, frames - bool(image.info.get("default_image")))
        height, width = image.size[::-1]
        if kind == "PNG" and "exif" not in image.info:
            image.info["exif"] = _late_exif(file)
        exif, xmp = raw_exif(image), raw_xmp(image.info)
        if (frames == 1 or kind == "AVIF") and orientation_of(image, exif, xmp) >= 5:
            height, width = width, height
        # Of moving pictures Pillow reads the upper eight bits.
        deep = frames == 1 and (image.mode in _DEEP_MODES or (kind == "PNG" and png_depth(file) == 16))
        return Header(
            (height, width),
            _channels(image),
            16 if deep else 8,
            "JPEG" if kind == "MPO" else kind,
            frames,
            image.info.get("icc_profile"),
            exif,
            xmp,
            metadata.iptc_in(image.info),
            image.mode in _CMYK_AND_LAB,
        )


def _late_exif(file: Opened) -> bytes | None:
    """The EXIF block behind the pixels of a PNG file, where Pillow finds it when it has decoded these. It is looked for
    at the end alone, by its name and checksum: going from chunk to chunk would read most of the file."""
    end = file.at(max(0, file.stream.seek(0, os.SEEK_END) - _TAIL_BYTES), _TAIL_BYTES)
    at = end.rfind(b"eXIf")
    stop = at + 4 + int.from_bytes(end[max(0, at - 4) : max(0, at)], "big")
    checksum = int.from_bytes(end[stop : stop + 4], "big")
    return end[at + 4 : stop] if at >= 4 and zlib.crc32(end[at:stop]) == checksum else None


def _channels(image: Image.Image) -> int:
    if image.mode in _CMYK_AND_LAB:
        return 3
    grey = image.mode in ("1", "L", "LA", "La", *_DEEP_MODES)
    if not fills_screen(image):
        return 4
    return (1 if grey else 3) + bool(image.has_transparency_data)


def _of_tiff(file: Opened) -> Header:
    info = tiff_info(file)
    if is_for_pillow(info):
        file.stream.seek(0)
        with TiffImagePlugin.TiffImageFile(file.stream) as seen:
            height, width, channels, depth = seen.height, seen.width, _channels(seen), 8
    else:
        image = file.vips_image()
        height, width = image.height, image.width
        known = image.interpretation in OF_NO_DEVICE
        converted = known or image.interpretation == "cmyk"
        channels = 3 if converted else min(seen_bands(file.name, image, info).bands, 4)
        depth = 16 if known or image.format == "ushort" else 8
        if 5 <= info.get("orientation", 1) <= 8:  # which Pillow has seen to
            height, width = width, height
    iptc = metadata.iptc_of(info.get("iptc"))
    return Header((height, width), channels, depth, "TIFF", exif=info.get("exif"), xmp=info.get("xmp"), iptc=iptc)
