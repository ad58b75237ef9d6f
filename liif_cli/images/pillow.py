"""Pillow images to pictures and back: every mode of Pillow's, one rule each."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from liif_cli.errors import InputError
from liif_cli.images import metadata
from liif_cli.images.picture import Array, Picture
from liif_cli.images.quiet import quiet, vips
from liif_cli.images.tiff import JPEG_TABLES, first_table

_STRIP_PIXELS = 2**20
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")


def pixels_of(image: Image.Image, name: str) -> Array:
    """Return a loaded image's pixels, (H, W, C) uint8 or uint16, as they lie, CMYK and Lab excepted: these become sRGB.

    Raises InputError, which begins with `name`, for modes without a fixed range (32-bit integers, floats).
    """
    mode = image.mode
    if image.format == "BMP" and mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # a fourth byte that is not meant as alpha, as of bitmaps from Windows' clipboard
    if mode in _DEEP:
        return np.asarray(image).astype(np.uint16)[..., None]
    if mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise InputError(f"{name}: has 32-bit integer samples; convert it to 8 or 16 bits per channel first")
        return values.astype(np.uint16)[..., None]
    if mode == "F":
        raise InputError(f"{name}: has floating-point samples; convert it to 8 or 16 bits per channel first")
    if mode == "CMYK":
        return srgb_from_cmyk(as_channels(image), image.info.get("icc_profile"))[0]
    if mode == "LAB":
        return np.asarray(_from_lab(image))
    plain = _plain_mode(image)
    return as_channels(image if mode == plain else image.convert(plain))  # which would copy


def as_channels(image: Image.Image) -> Array:
    """Return an image's samples, (H, W, C)."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if image.height <= rows:
        array = np.asarray(image)
    else:  # in strips: on the way Pillow holds all of what it hands over twice
        pixel = np.asarray(image.crop((0, 0, 1, 1)))
        array = np.empty((image.height, image.width, *pixel.shape[2:]), pixel.dtype)
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            array[top : top + rows] = np.asarray(strip)
    return array[..., None] if array.ndim == 2 else array


def _plain_mode(image: Image.Image) -> str:
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return "LA" if grey else "RGBA"
    return "L" if grey else "RGB"


def _from_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None
    return converted


def srgb_from_cmyk(inks: Array, icc: bytes | None) -> tuple[Array, bytes]:
    """Turn (H, W, 4) inks, uint8 or uint16, 0 no ink, into sRGB (H, W, 3) of the same type, and its profile.

    The embedded profile decides; without a usable one, libvips's common press profile.
    """
    pyvips = vips()
    height, width = inks.shape[:2]
    kind = "ushort" if inks.dtype == np.uint16 else "uchar"
    flat = np.ascontiguousarray(inks)
    image = pyvips.Image.new_from_memory(flat.data, width, height, 4, kind).copy(interpretation="cmyk")
    # The alternative profile is used where the embedded one is missing or of another colour space.
    options = {
        "input_profile": "cmyk",
        "depth": flat.itemsize * 8,
        "intent": "relative",
        "black_point_compensation": True,
    }
    if icc and icc[16:20] == b"CMYK":
        with_profile = image.copy()
        with_profile.set_type(pyvips.GValue.blob_type, "icc-profile-data", icc)
        try:
            converted = with_profile.icc_transform("srgb", embedded=True, **options)
            return _samples(converted), bytes(converted.get("icc-profile-data"))
        except pyvips.Error:
            pass  # a damaged profile is worth no more than none
    converted = image.icc_transform("srgb", **options)
    return _samples(converted), bytes(converted.get("icc-profile-data"))


def _samples(image: Any) -> Array:
    array = np.asarray(image.numpy())
    return array if array.ndim == 3 else array[..., None]


def in_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """Return a grey or RGB image, with or without alpha, as sRGB colours; unchanged if the profile is unusable."""
    alpha = image.getchannel("A") if "A" in image.mode else None
    plain = image.convert("L" if image.mode in ("L", "LA") else "RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        colours = ImageCms.profileToProfile(plain, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image
    assert colours is not None
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def matching_profile(icc: Any, pixels: Array) -> bytes | None:
    """Return the profile where it is whole and speaks of pixels like these (a grey one for grey, an RGB one for RGB),
    else None. What lies behind it is cut off, and its length becomes a multiple of four: libpng refuses others."""
    if not isinstance(icc, bytes) or len(icc) < 128 or icc[16:20] != (b"GRAY" if pixels.shape[2] <= 2 else b"RGB "):
        return None
    length = int.from_bytes(icc[:4], "big")
    if not 128 <= length <= len(icc):
        return None
    padding = -length % 4
    return (length + padding).to_bytes(4, "big") + icc[4:length] + bytes(padding)


def turned(pixels: Array, orientation: int) -> Array:
    """Return the pixels upright, for an EXIF orientation of 1 to 8; contiguous."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # Orientation 5 and 7 are transpositions along the two diagonals; 6 and 8 are quarter turns.
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def dpi_of(info: dict[Any, Any]) -> tuple[float, float] | None:
    """Return (horizontal, vertical) where the file states a usable resolution."""
    if isinstance(info.get("dpi"), str):  # a text of a PNG file that is called so
        return None
    try:
        across, down = (float(value) for value in info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    # PNG counts dots a metre: 299.9994 was 300.
    across, down = round(across, 1), round(down, 1)
    # Less than 2 is a ratio, not a resolution.
    return (across, down) if 2 <= across < 1e5 and 2 <= down < 1e5 else None


def stated_dpi(info: dict[Any, Any], exif: bytes | None, file_format: str) -> tuple[float, float] | None:
    """`dpi_of`, or EXIF's where the file itself states none. Of JPEG files Pillow says 72 dpi where it finds none, and
    takes EXIF's for square."""
    stated = dpi_of(info) if file_format != "JPEG" or info.get("jfif_unit") in (1, 2) else None
    return stated or dpi_of({"dpi": metadata.resolution(exif)})


def turned_dpi(dpi: tuple[float, float] | None, orientation: int) -> tuple[float, float] | None:
    """Return (horizontal, vertical) of a picture that lay so, once it is upright."""
    return dpi[::-1] if dpi is not None and orientation >= 5 else dpi


def orientation_of(image: Image.Image, exif: bytes | None, xmp: bytes | None) -> int:
    """Return how an image lies, 1 to 8. AVIF says it in a field of its own, which Pillow hands over as EXIF's."""
    return metadata.orientation(exif, None if image.format == "AVIF" else xmp)


def from_pil(image: Image.Image) -> Picture:
    """Return a picture of a Pillow image: turned upright, profile and metadata carried.

    Palettes become RGB or RGBA, CMYK, Lab and YCbCr become RGB, bilevel becomes grey. Raises InputError for float and
    32-bit modes, and where a lazily opened file cannot be decoded.
    """
    with quiet():
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"the image cannot be decoded: {error}") from error
        return picture_of(image, "the image", image.format or "PNG")


def picture_of(image: Image.Image, name: str, file_format: str, orientation: int | None = None) -> Picture:
    """Return a picture of a loaded Pillow image; raises InputError that begins with `name`.

    `orientation` is how the pixels lie, 1 to 8; None: as EXIF or XMP says.
    """
    if 0 in image.size:
        raise InputError(f"{name}: has no pixels")
    info = image.info
    pixels = pixels_of(image, name)
    exif, xmp = raw_exif(image), raw_xmp(info)
    if file_format == "MPO":  # telephones put a second picture behind the first; the first is plain JPEG
        file_format = "JPEG"
    turn = orientation or orientation_of(image, exif, xmp)
    return Picture(
        pixels=turned(pixels, turn),
        icc=_srgb_profile() if image.mode in ("CMYK", "LAB") else matching_profile(info.get("icc_profile"), pixels),
        exif=metadata.upright_exif(exif),
        xmp=metadata.upright_xmp(xmp),
        format=file_format,
        dpi=turned_dpi(stated_dpi(info, exif, file_format), turn),
        lossless=file_format not in ("JPEG", "WEBP", "AVIF", "HEIF") and not _is_jpeg_in_tiff(image),
        iptc=metadata.iptc_in(info),
        texts=metadata.texts_in(info) if image.format == "PNG" else (),
        jpeg_quality=jpeg_quality(_luma_table(image)),
    )


# The sum of the table for luma that libjpeg (and the standard's annex K) has at quality 50.
_TABLE_SUM = 3688


def _is_jpeg_in_tiff(image: Image.Image) -> bool:
    return image.format == "TIFF" and image.info.get("compression") in ("jpeg", "tiff_jpeg")


def _luma_table(image: Image.Image) -> Sequence[int]:
    """Empty of what is no JPEG file, or does not tell."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        content = image.tag_v2.get(JPEG_TABLES)
        return first_table(content) if _is_jpeg_in_tiff(image) and isinstance(content, bytes) else ()
    tables = getattr(image, "quantization", None)
    return tables[min(tables)] if tables else ()


def jpeg_quality(luma_table: Sequence[int]) -> int | None:
    """The quality for which libjpeg would have made a quantisation table as coarse as this one for luma, 1 to 100; None
    of no table."""
    if not luma_table:
        return None
    percent: float = 100 * sum(luma_table) / _TABLE_SUM
    return min(100, max(1, round(100 - percent / 2 if percent <= 100 else 5000 / percent)))


def raw_exif(image: Image.Image) -> bytes | None:
    """Return the EXIF block as the file has it."""
    exif = image.info.get("exif") or metadata.raw_profile(image.info, "exif")
    if not isinstance(exif, bytes):
        return None
    while exif.startswith(metadata.PREFIX):  # some files have it twice
        exif = exif.removeprefix(metadata.PREFIX)
    return metadata.PREFIX + exif if exif else None


def raw_xmp(info: dict[Any, Any]) -> bytes | None:
    """Return the XMP packet as the file has it."""
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or metadata.raw_profile(info, "xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode()
    return xmp if isinstance(xmp, bytes) and xmp else None


def _srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def to_pil(pixels: Array, like: Picture) -> Image.Image:
    """Return pixels (h, w, C), uint8 or uint16 grey, as a Pillow image with the profile and metadata of `like`.

    Raises InputError for 16-bit colour and floats, which Pillow cannot hold.
    """
    if pixels.dtype == np.uint16 and pixels.shape[2] != 1:
        raise InputError("Pillow cannot hold 16-bit colour; pass an array instead")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError("Pillow cannot hold floating-point colour; pass an array instead")
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    size = pixels.shape[0], pixels.shape[1]
    carried = {
        "icc_profile": like.icc,
        "exif": metadata.resized_exif(like.exif, size),
        "xmp": metadata.resized_xmp(like.xmp, size),
        "dpi": like.dpi,
    }
    image.info.update({key: value for key, value in carried.items() if value is not None})
    return image
