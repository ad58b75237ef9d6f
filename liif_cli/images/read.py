"""Picture files to `Picture`: known by their content, not their name; upright, whole, and with all they carry.

Pillow decodes what it holds without loss. It reads 16-bit colour as 8-bit, so that goes through libvips; so does
TIFF, of which libvips knows more kinds. Files are not trusted: whatever a decoder says of a damaged one becomes
InputError.
"""

import contextlib
import importlib
import io
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import (
    AvifImagePlugin,  # noqa: F401  each plugin registers itself with Image.OPEN
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

from liif_cli.errors import InputError
from liif_cli.images import metadata
from liif_cli.images.gif import parts
from liif_cli.images.picture import Array, Picture
from liif_cli.images.pillow import (
    dpi_of,
    jpeg_quality,
    matching_profile,
    picture_of,
    raw_exif,
    raw_xmp,
    srgb_from_cmyk,
    stated_dpi,
    turned,
    turned_dpi,
)
from liif_cli.images.quiet import quiet, vips
from liif_cli.images.tiff import JPEG, count_pages, metadata_of

Source: TypeAlias = Path | bytes | BinaryIO

DEFAULT_MAX_PIXELS = 1 << 28
"""16,384 x 16,384. In the costliest case, 16-bit with alpha, such a picture and its layers take about 10 GB."""

_BY_PILLOW = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "HEIF")
# Byte order and version, 42 or 43 for the one with 64-bit offsets.
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
EXTENSIONS = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".dib")
) | {".avif", ".heic", ".heif", ".hif"}
"""The usual extensions of readable files, for looking through folders."""

# Where Pillow keeps, beside a PNG file's texts, what it works with.
_PILLOWS_OWN = ("transparency", "default_image", "loop", "bbox", "interlace")
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"))
_CONVERT = "convert it to PNG or TIFF first"
# In the words of libvips (compression, mode) and Pillow (depth).
_UNKNOWN_KINDS = ("not configured", "not supported", "not a whole number of bytes", "unknown pixel mode")


@dataclass(frozen=True)
class Opened:
    """A source under the name that errors call it by; `path` only where it can be opened again."""

    name: str
    stream: BinaryIO
    path: Path | None = None

    def head(self, length: int) -> bytes:
        return self.at(0, length)

    def at(self, place: int, length: int) -> bytes:
        self.stream.seek(place)
        return self.stream.read(length)

    def vips_image(self, fail_on: str = "error") -> Any:
        """Return the source as a libvips image that fails on truncated and damaged data. It can be read once, from top
        to bottom: for anything else libvips would first unpack large ones into a file."""
        options = {"access": "sequential", "fail_on": fail_on}
        if self.path is not None:
            # By a source: libvips reads options out of brackets in a file name.
            source = _vips_here(self.name).Source.new_from_file(os.fsencode(self.path))
            return vips().Image.new_from_source(source, "", **options)
        self.stream.seek(0)
        return _vips_here(self.name).Image.new_from_buffer(self.stream.read(), "", **options)


def _vips_here(name: str) -> Any:
    try:
        return vips()
    except (ImportError, OSError) as error:
        raise InputError(f"{name}: needs libvips to be read: pip install 'pyvips[binary]' ({error})") from error


def read(source: Source, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Picture:
    """Return the first frame of a picture file, given by path, by content, or as an open binary file.

    Reads PNG, JPEG, WebP, TIFF, GIF, BMP, AVIF, and HEIC where pillow-heif is installed. Orientation is applied;
    palettes become RGB(A); CMYK becomes sRGB through its profile; 16 bits per channel stay 16. Other profiles are kept,
    not applied.

    Raises InputError, one line that names the file and the remedy, when there is no such file, it is no picture, is
    damaged or cut short, has more than `max_pixels` pixels (None: no limit), or holds samples without a fixed range.
    """
    with opened(source) as file, quiet():
        if is_tiff(file):
            return _read_tiff(file, max_pixels)
        with recognise(file) as image:
            check_pixels(file.name, image.size[0] * image.size[1], max_pixels)
            with decoding(file.name):
                image.load()
                if image.format in ("JPEG", "MPO"):
                    _check_jpeg(file)
                if image.format == "PNG" and png_depth(file) == 16:
                    return _read_deep_png(file, image)
                if not fills_screen(image):
                    return _on_screen(file, image.size)
                return _lossless_webp(picture_of(image, file.name, str(image.format)), file)


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Opened]:
    """Open a source for reading; raises InputError when it is missing, a folder, empty or not readable."""
    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes):
            file = Opened("the picture", io.BytesIO(source))
        elif isinstance(source, Path):
            file = _open_path(source, stack)
        else:
            name = getattr(source, "name", None)
            try:
                file = Opened(name if isinstance(name, str) else "the picture", io.BytesIO(source.read()))
            except OSError as error:
                raise InputError(f"{name}: cannot be read: {error.strerror or error}") from error
        try:
            empty = not file.head(1)
        except OSError as error:  # a card, a drive or a network that fails
            raise InputError(f"{file.name}: cannot be read: {error.strerror or error}") from error
        if empty:
            raise InputError(f"{file.name}: is empty")
        yield file


def _open_path(path: Path, stack: contextlib.ExitStack) -> Opened:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: is a folder, not a picture")
        stream = stack.enter_context(path.open("rb"))
        if not stat.S_ISREG(mode):  # pipes cannot be read twice
            return Opened(str(path), io.BytesIO(stream.read()))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return Opened(str(path), stream, path)


@contextlib.contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a hostile file into InputError."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name}: too large to decode in the memory there is") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: has more pixels than its format's reader allows; {_CONVERT}") from error
    # Decoders are known to leak OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error, zlib.error, ...
    except Exception as error:
        words = " ".join(str(error).split()).lower()
        if "truncated" in words or "end of file" in words or "unexpected eof" in words or "premature" in words:
            raise InputError(f"{name}: is cut short; get the whole file again") from error
        if any(part in words for part in _UNKNOWN_KINDS):
            raise InputError(f"{name}: is of a kind that cannot be decoded here ({words[:120]}); {_CONVERT}") from error
        raise InputError(f"{name}: is damaged and cannot be decoded ({words[:120] or type(error).__name__})") from error


def png_depth(file: Opened) -> int:
    """Bits a sample, as the header chunk of a PNG file has it."""
    return file.head(25)[24]


def is_tiff(file: Opened) -> bool:
    """Whether a file begins as TIFF files do."""
    return file.head(4) in _TIFF_STARTS


def recognise(file: Opened) -> Image.Image:
    """Return the file as a Pillow image, not yet decoded; raises InputError for what is none, and for TIFF.

    Pillow's own `open` would refuse or warn by a limit of the whole process; here the caller's limit holds.
    """
    prefix = file.head(16)
    heic = bool(brands(file.head(256)) & _HEIC_BRANDS)
    if heic:
        _register_heic(file)
    for name in ("HEIF",) if heic else _BY_PILLOW:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(prefix) is not True):
            continue
        file.stream.seek(0)
        with decoding(file.name):
            image: Image.Image = factory(file.stream, str(file.path or ""))
            # Pillow spreads grey of few bits over 8, but not the shade that is meant to be transparent; that of one bit
            # it does since version 12.
            shade = image.info.get("transparency")
            if image.format == "PNG" and image.mode in ("1", "L") and isinstance(shade, int):
                greatest = 2 ** min(png_depth(file), 8) - 1
                image.info["transparency"] = min(shade, greatest) * 255 // greatest
            for name in _PILLOWS_OWN:  # a text of a PNG file may be called like that
                if isinstance(image.info.get(name), str):
                    del image.info[name]
                    if name == "bbox" and isinstance(image, PngImagePlugin.PngImageFile):  # asked where pixels go
                        image.tile = [tile._replace(extents=(0, 0, *image.size)) for tile in image.tile]
            return image
    if heic:
        raise InputError(f"{file.name}: is a HEIC picture; install the reader with: pip install pillow-heif")
    raise InputError(f"{file.name}: is not a picture liif can read (PNG, JPEG, WebP, TIFF, GIF, BMP, AVIF, HEIC)")


def brands(head: bytes) -> set[bytes]:
    """What a file of the ISO kind says, in its first bytes, it is compatible with: HEIC and AVIF may both begin as the
    general "mif1"."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(len(head), int.from_bytes(head[:4], "big"))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}


def _register_heic(file: Opened) -> None:
    try:
        # By name: an optional package, absent where types are checked.
        register = importlib.import_module("pillow_heif").register_heif_opener
    except ImportError:
        return
    with decoding(file.name):
        register()


def check_pixels(name: str, pixels: int, max_pixels: int | None) -> None:
    """Raise InputError where a picture has more pixels than allowed: it may be a small file made to fill the memory."""
    if max_pixels is not None and pixels > max_pixels:
        raise InputError(
            f"{name}: has {_count(pixels)} pixels, more than the limit of {_count(max_pixels)}; "
            "raise the limit (liif upscale --max-pixels) if the file is to be trusted, or cut it into parts"
        )


def fills_screen(image: Image.Image) -> bool:
    """Whether the first frame of a GIF file covers all of the picture; true of what is no GIF."""
    left, top, right, bottom = getattr(image, "dispose_extent", None) or (0, 0, *image.size)
    return image.format != "GIF" or (
        left <= 0 and top <= 0 and (right, bottom) >= image.size and bottom >= image.height
    )


def _on_screen(file: Opened, size: tuple[int, int]) -> Picture:
    """The first frame of a GIF file where it lies in the picture, whose rest is transparent, as browsers have it.
    Pillow fills that with a colour of the palette."""
    part = next(parts(file.head(-1)))
    with recognise(Opened(file.name, io.BytesIO(part.alone))) as image:
        image.load()
        frame = picture_of(image, file.name, "GIF", 1)
    left, top, right, bottom = part.place
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    place = pixels[top:bottom, left:right]
    place[..., :3] = frame.colour[: place.shape[0], : place.shape[1]]
    place[..., 3] = 255 if frame.alpha is None else frame.alpha[: place.shape[0], : place.shape[1]]
    return replace(frame, pixels=pixels)


_ZEROS = 64
# What libjpeg, in lower case, says of a file whose pixels are not all there, and goes on with grey or nonsense; Pillow
# says nothing of it. Of what else it warns (bytes between markers, say) pictures are whole.
_PIXELS_LOST = ("premature end", "bad huffman code", "instead of rst", "bad arithmetic code", "progression sequence")


def _check_jpeg(file: Opened) -> None:
    """Raise InputError for a JPEG file with a hole in its data: one that libjpeg notices, or zeros to the end, as of a
    copy that was broken off, which are codes like others."""
    content = file.head(-1)
    lost = content.endswith(bytes(_ZEROS)) and b"\xff\xd9" not in content[content.rfind(b"\xff\xda") :]
    try:
        file.vips_image("warning").avg()
    except InputError:
        pass  # without libvips
    except vips().Error as error:
        said = str(error).lower()
        lost |= any(words in said for words in _PIXELS_LOST)
    if lost:
        raise InputError(
            f"{file.name}: is damaged: part of its pixels is missing or wrong; get the file again, or save what is left"
            " of it anew with another program"
        )


def _count(pixels: int) -> str:
    return f"{pixels:,}" if pixels < 10**6 else f"{pixels / 1e6:,.0f} million" if pixels < 10**12 else f"{pixels:.0e}"


def _read_deep_png(file: Opened, image: Image.Image) -> Picture:
    """Read the pixels of a 16-bit PNG file; `image`, loaded, knows the metadata, which may lie behind them."""
    with decoding(file.name):
        pixels = _vips_array(file.vips_image())
    exif, xmp, info = raw_exif(image), raw_xmp(image.info), image.info
    turn = metadata.orientation(exif, xmp)
    return Picture(
        pixels=turned(pixels, turn),
        icc=matching_profile(info.get("icc_profile"), pixels),
        exif=metadata.upright_exif(exif),
        xmp=metadata.upright_xmp(xmp),
        format="PNG",
        dpi=turned_dpi(stated_dpi(info, exif, "PNG"), turn),
        iptc=metadata.iptc_in(info),
        texts=metadata.texts_in(info),
    )


def tiff_info(file: Opened) -> dict[str, Any]:
    """Return `metadata_of` a TIFF file, as far as it can be read. Raises InputError for one of several pages, and for
    one whose first page is a preview."""
    try:
        info, pages = metadata_of(file.stream), count_pages(file.stream)
    except (struct.error, ValueError, OSError, OverflowError):
        return {}  # the pixels may be whole all the same
    if pages == 0:
        raise InputError(f"{file.name}: begins with a preview, as camera raws do; develop it to TIFF or PNG first")
    if pages > 1:
        raise InputError(f"{file.name}: holds {pages} pages, and one would be read; split it into files of one page")
    photometric = info.get("photometric", 1)
    if photometric in _RAW:
        raise InputError(f"{file.name}: holds what a camera's sensor saw; develop it to TIFF or PNG first")
    raw_ycbcr = photometric == _YCBCR and info.get("compression") == 1 and info.get("subsampling", (2, 2)) != (1, 1)
    if photometric not in _PHOTOMETRICS or (photometric == _INKS and info.get("samples", 4) < 4) or raw_ycbcr:
        raise InputError(
            f"{file.name}: is of a kind that cannot be decoded here (photometric interpretation {photometric}, of"
            f" {info.get('samples', 1)} channels, compression {info.get('compression', 1)}); {_CONVERT}"
        )
    return info


def _read_tiff(file: Opened, max_pixels: int | None) -> Picture:
    info = tiff_info(file)
    turn = info.get("orientation", 1)
    turn = turn if 1 <= turn <= 8 else 1
    icc: bytes | None
    with decoding(file.name):
        if is_for_pillow(info):
            pixels, icc = _tiff_by_pillow(file, max_pixels)
        else:
            image = file.vips_image()
            check_pixels(file.name, image.width * image.height, max_pixels)
            icc = bytes(image.get("icc-profile-data")) if image.get_typeof("icc-profile-data") else None
            pixels, icc = _vips_pixels(file.name, image, icc, info)
            pixels = turned(pixels, turn)
    return Picture(
        pixels=pixels,
        icc=matching_profile(icc, pixels),
        exif=metadata.upright_exif(info.get("exif")),
        xmp=metadata.upright_xmp(info.get("xmp")),
        format="TIFF",
        dpi=turned_dpi(dpi_of(info), turn),
        lossless=info.get("compression") not in _WITH_LOSS,
        iptc=metadata.iptc_of(info.get("iptc")),
        jpeg_quality=jpeg_quality(info.get("quantisation", ())),
    )


_INKS, _YCBCR = 5, 6
_PHOTOMETRICS = (0, 1, 2, 3, _INKS, _YCBCR, 8)  # that are read as what they are: grey, RGB, palettes, CMYK, YCbCr, Lab
_RAW = (32803, 34892)  # a colour filter's mosaic, and what was made of it before it is developed
# YCbCr and CIE Lab: libvips takes the first for RGB where it is not JPEG, and does not know the second in 8 bits.
_LUMINANCE_AND_COLOUR = (6, 8)
_ZSTD_AND_LZMA = (50000, 34925)  # which libvips's wheel cannot unpack
_OLD_JPEG = 6
_WITH_LOSS = (_OLD_JPEG, JPEG)
OF_NO_DEVICE = frozenset({"lab", "labs", "labq"})  # what libvips calls colours that become 16-bit sRGB
_ASSOCIATED_ALPHA, _ALPHA = 1, 2  # kinds of extra samples


def is_for_pillow(info: dict[str, Any]) -> bool:
    """Whether a TIFF file, by its `metadata_of`, is of a kind that libvips misreads, and Pillow reads without loss."""
    odd = info.get("photometric") in _LUMINANCE_AND_COLOUR or info.get("compression") in _ZSTD_AND_LZMA
    return odd and info.get("bits", 1) <= 8


def seen_bands(name: str, image: Any, info: dict[str, Any]) -> Any:
    """A libvips image of a TIFF file without the channels that are not seen, such as saved selections."""
    if image.interpretation == "cmyk":
        return image
    colours = 1 if image.interpretation in ("b-w", "grey16") else 3
    extra = info.get("extra_samples", ())
    beyond = image.bands - colours
    if beyond < 1 or (beyond == 1 and not extra):
        return image
    if len(extra) < beyond:
        raise InputError(f"{name}: has {image.bands} channels; flatten it to CMYK, RGB or RGB with transparency first")
    colour = image.extract_band(0, n=colours)
    alpha = [number for number, kind in enumerate(extra[:beyond]) if kind in (_ASSOCIATED_ALPHA, _ALPHA)]
    return colour.bandjoin(image.extract_band(colours + alpha[0])) if alpha else colour


def _tiff_by_pillow(file: Opened, max_pixels: int | None) -> tuple[Array, bytes | None]:
    file.stream.seek(0)
    with TiffImagePlugin.TiffImageFile(file.stream) as image:
        check_pixels(file.name, image.size[0] * image.size[1], max_pixels)
        image.load()  # which turns it upright as well
        picture = picture_of(image, file.name, "TIFF", 1)
        return picture.pixels, picture.icc


def _vips_pixels(name: str, image: Any, icc: bytes | None, info: dict[str, Any]) -> tuple[Array, bytes | None]:
    if image.interpretation in OF_NO_DEVICE:
        image, icc = image.colourspace("rgb16"), None
    if image.format not in ("uchar", "ushort"):
        raise InputError(f"{name}: has {image.format} samples; convert it to 8 or 16 bits per channel first")
    if image.interpretation == "cmyk" and image.bands == 4:
        return srgb_from_cmyk(_vips_array(image), icc)
    image = seen_bands(name, image, info)
    if image.bands > 4:
        raise InputError(f"{name}: has {image.bands} channels; flatten it to CMYK, RGB or RGB with transparency first")
    return _vips_array(image), icc


def _vips_array(image: Any) -> Array:
    array = np.asarray(image.numpy())
    return array[..., None] if array.ndim == 2 else array


def _lossless_webp(picture: Picture, file: Opened) -> Picture:
    return replace(picture, lossless=is_lossless_webp(file.stream)) if picture.format == "WEBP" else picture


def is_lossless_webp(stream: BinaryIO) -> bool:
    """Whether the first bitstream is VP8L; it may lie behind a profile, or inside the first frame of an animation."""
    at = 12  # behind RIFF, length, WEBP
    while True:
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8 or head[:4] == b"VP8 ":
            return False
        if head[:4] == b"VP8L":
            return True
        # A frame holds 16 bytes of its own, then chunks; chunks are padded to even lengths.
        length = int.from_bytes(head[4:], "little")
        at += 24 if head[:4] == b"ANMF" else 8 + length + length % 2
