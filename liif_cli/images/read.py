"""Picture files to `Picture`: known by their content, not their name; upright, whole, and with all they carry.

Pillow decodes what it holds without loss. It reads 16-bit colour as 8-bit, so that goes through libvips, as do TIFF
files of kinds Pillow does not know. Files are not trusted: whatever a decoder says of a damaged one becomes
InputError.
"""

import contextlib
import importlib
import io
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
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

from liif_cli.errors import InputError
from liif_cli.images import metadata
from liif_cli.images.picture import Array, Picture
from liif_cli.images.pillow import dpi_of, matching_profile, picture_of, raw_exif, raw_xmp, srgb_from_cmyk, turned
from liif_cli.images.quiet import quiet, vips
from liif_cli.images.tiff import metadata_of

Source: TypeAlias = Path | bytes | BinaryIO

DEFAULT_MAX_PIXELS = 1 << 28
"""16,384 x 16,384. In the costliest case, 16-bit with alpha, such a picture and its layers take about 10 GB."""

READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "HEIF")
EXTENSIONS = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".dib")
) | {".avif", ".heic", ".heif", ".hif"}
"""The usual extensions of readable files, for looking through folders."""

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_CONVERT = "convert it to PNG or TIFF first"


@dataclass(frozen=True)
class Opened:
    """A source under the name that errors call it by; `path` only where it can be opened again."""

    name: str
    stream: BinaryIO
    path: Path | None = None

    def head(self, length: int) -> bytes:
        self.stream.seek(0)
        return self.stream.read(length)

    def vips_image(self) -> Any:
        """Return the source as a libvips image that fails on truncated and damaged data."""
        if self.path is not None:
            # By a source: libvips reads options out of brackets in a file name.
            source = vips().Source.new_from_file(str(self.path))
            return vips().Image.new_from_source(source, "", fail_on="error")
        self.stream.seek(0)
        return vips().Image.new_from_buffer(self.stream.read(), "", fail_on="error")


def read(source: Source, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Picture:
    """Return the first frame of a picture file, given by path, by content, or as an open binary file.

    Reads PNG, JPEG, WebP, TIFF, GIF, BMP, AVIF, and HEIC where pillow-heif is installed. Orientation is applied;
    palettes become RGB(A); CMYK becomes sRGB through its profile; 16 bits a channel stay 16. Other profiles are kept,
    not applied.

    Raises InputError, one line that names the file and the remedy, when there is no such file, it is no picture, is
    damaged or cut short, has more than `max_pixels` pixels (None: no limit), or holds samples without a fixed range.
    """
    with opened(source) as file, quiet():
        image = recognise(file)
        if image is None:
            return _read_by_vips(file, max_pixels)
        with image:
            check_pixels(file.name, image.size[0] * image.size[1], max_pixels)
            if is_deep_colour(image):
                return _read_by_vips(file, max_pixels, image)
            with decoding(file.name):
                image.load()
                if image.format == "TIFF":
                    image.info.pop("dpi", None)  # one dot an inch where the file says nothing
                    image.info.update(_tiff_info(file))
                # Pillow has turned TIFF pictures itself, whatever XMP says.
                orientation = 1 if image.format == "TIFF" else None
                picture = picture_of(image, file.name, image.format or "PNG", orientation)
        return _lossless_webp(picture, file)


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
        if not file.head(1):
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
        raise InputError(f"{name}: is damaged and cannot be decoded ({words[:120] or type(error).__name__})") from error


def recognise(file: Opened) -> Image.Image | None:
    """Return the file as a Pillow image, not yet decoded; None for a TIFF that only libvips may know.

    Pillow's own `open` would refuse or warn by a limit of the whole process; here the caller's limit holds.
    """
    prefix = file.head(16)
    if prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIC_BRANDS:
        _register_heic(file)
    for name in READABLE:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(prefix) is not True):
            continue
        file.stream.seek(0)
        with decoding(file.name):
            try:
                return factory(file.stream, str(file.path or ""))
            except SyntaxError:
                # Pillow's word for "not mine after all": of a TIFF it means an unusual layout, else a damaged header.
                if name == "TIFF":
                    return None
                raise
    if prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIC_BRANDS:
        raise InputError(f"{file.name}: is a HEIC picture; install the reader with: pip install pillow-heif")
    raise InputError(f"{file.name}: is not a picture liif can read (PNG, JPEG, WebP, TIFF, GIF, BMP, AVIF, HEIC)")


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
            f"{name}: has {pixels / 1e6:,.0f} million pixels, more than the limit of {max_pixels / 1e6:,.0f} million; "
            "raise the limit if the file is to be trusted, or cut it into parts"
        )


def is_deep_colour(image: Image.Image) -> bool:
    """Whether a file has 16 bits a channel in a form that Pillow would cut to 8."""
    if image.format == "PNG":
        # The rawmode of the first tile: RGB;16B, RGBA;16B, LA;16B. Deep grey is whole in Pillow, but not its
        # transparency.
        tiles = getattr(image, "tile", [])
        rawmode = str(tiles[0][3]) if tiles else ""
        return "16" in rawmode and (image.mode not in ("I", "I;16", "I;16B") or "transparency" in image.info)
    if image.format == "TIFF":
        return max(_tiff_numbers(image, TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
    return False


def _tiff_numbers(image: Image.Image, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return tuple(value) if isinstance(value, tuple) else (value,)


def _read_by_vips(file: Opened, max_pixels: int | None, known: Image.Image | None = None) -> Picture:
    """Read 16-bit colour, and TIFF files that Pillow does not know."""
    with decoding(file.name):
        image = file.vips_image()
        check_pixels(file.name, image.width * image.height, max_pixels)
        icc = bytes(image.get("icc-profile-data")) if image.get_typeof("icc-profile-data") else None
        pixels, icc = _vips_pixels(file.name, image, icc)
        if known is not None and known.format == "PNG":
            known.load()  # EXIF and XMP may lie behind the pixels
            info: dict[Any, Any] = dict(known.info)
            info["exif"] = raw_exif(known)
            orientation = metadata.orientation(info["exif"], raw_xmp(info))
        else:
            info = _tiff_info(file)
            orientation = info.get("orientation", 1)
        exif, xmp = info.get("exif"), raw_xmp(info)
    return Picture(
        pixels=turned(pixels, orientation if 1 <= orientation <= 8 else 1),
        icc=matching_profile(icc, pixels),
        exif=metadata.upright_exif(exif),
        xmp=metadata.upright_xmp(xmp),
        format="TIFF" if known is None else str(known.format),
        dpi=dpi_of(info),
    )


def _vips_pixels(name: str, image: Any, icc: bytes | None) -> tuple[Array, bytes | None]:
    if image.format not in ("uchar", "ushort"):
        raise InputError(f"{name}: has {image.format} samples; convert it to 8 or 16 bits a channel first")
    if image.interpretation == "cmyk" and image.bands >= 4:
        return srgb_from_cmyk(_vips_array(image[:4]), icc)
    if image.interpretation in ("lab", "labs", "labq", "xyz"):
        image, icc = image.colourspace("rgb16"), None
    if image.bands > 4:
        raise InputError(f"{name}: has {image.bands} channels; {_CONVERT}")
    return _vips_array(image), icc


def _vips_array(image: Any) -> Array:
    array = np.asarray(image.numpy())
    return array[..., None] if array.ndim == 2 else array


def _tiff_info(file: Opened) -> dict[Any, Any]:
    try:
        return metadata_of(file.stream)
    except (struct.error, ValueError, OSError, OverflowError):
        return {}  # the pixels may be whole all the same


def _lossless_webp(picture: Picture, file: Opened) -> Picture:
    if picture.format != "WEBP":
        return picture
    head = file.head(4096)
    # A VP8L bitstream: the first chunk of a simple file, or one of the chunks of an extended one.
    return replace(picture, lossless=b"VP8L" in head and b"VP8 " not in head)
