"""A picture file is read upright, whole, and with all it carries; anything else is one line that names the file."""

import io
import os
import re
import struct
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms, PngImagePlugin
from PIL import __version__ as PILLOW

from liif_cli.errors import InputError
from liif_cli.images import (
    Picture,
    animation,
    from_array,
    from_pil,
    metadata,
    read,
    read_animation,
    read_header,
    to_array,
    to_pil,
    write,
)
from liif_cli.images.tiff import first_table, metadata_of

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION, EXIF_DIRECTORY = 0x0112, 0x8769


def exif_block(orientation: int = 1, **more: Any) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "A maker"
    exif[ORIENTATION] = orientation
    exif[EXIF_DIRECTORY] = {0x9003: "2020:01:01 00:00:00", 0xA002: 30, 0xA003: 20, 0x927C: b"note\0\1\2\3" * 9}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return exif.tobytes()


def corners(height: int = 24, width: int = 40) -> np.ndarray:
    """A picture that looks different from every side: red, green, blue, white quarters; (H, W, 3)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (200, 30, 30)
    pixels[: height // 2, width // 2 :] = (30, 200, 30)
    pixels[height // 2 :, : width // 2] = (30, 30, 200)
    pixels[height // 2 :, width // 2 :] = (220, 220, 220)
    return pixels


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(array: np.ndarray, extra: bytes = b"") -> bytes:
    """A PNG file written by hand, any depth and channels, with chunks of one's own before the pixels."""
    height, width, channels = array.shape
    depth = array.dtype.itemsize * 8
    rows = array.astype(">u2") if depth == 16 else array
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "TIFF16", "LAB", "PNG16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_and_forgotten(format: str, orientation: int) -> None:
    upright = corners()
    # How a camera held that way would have stored it: the inverse of what a viewer does.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    stored = np.ascontiguousarray(stored)
    exif = exif_block(orientation)
    if format == "PNG16":
        content = png(stored.astype(np.uint16) * 257, chunk(b"eXIf", exif[6:]))
    elif format == "TIFF16":
        buffer = io.BytesIO()
        tags = [(ORIENTATION, "H", 1, orientation, True)]
        tifffile.imwrite(buffer, stored.astype(np.uint16) * 257, photometric="rgb", extratags=tags, metadata=None)
        content = buffer.getvalue()
    elif format == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        content = encode(ImageCms.applyTransform(Image.fromarray(stored), to_lab), "TIFF", exif=exif)
    else:
        options = {"quality": 100} if format in ("JPEG", "WEBP", "AVIF") else {}
        content = encode(Image.fromarray(stored), format, exif=exif, **options)
    picture = read(content)
    assert picture.size == read_header(io.BytesIO(content)).size == upright.shape[:2]
    values = picture.pixels.astype(float) / (257 if picture.depth == 16 else 1)
    # Away from the borders of the quarters, where compression blurs.
    for y, x in ((4, 6), (4, 33), (19, 6), (19, 33)):
        assert np.abs(values[y, x] - upright[y, x]).max() < 15
    if picture.exif is not None:
        again = Image.Exif()
        again.load(picture.exif)
        assert again.get(ORIENTATION, 1) == 1


def test_a_thumbnail_of_plain_pixels_is_blanked() -> None:
    strips = [b"first strip.", b"and a second"]
    at = 8 + 2 + 4
    data = at + 2 + 24 + 4
    block = b"II*\0" + struct.pack("<IHI", 8, 0, at) + struct.pack("<H", 2)
    block += struct.pack("<HHII", 0x0111, 4, 2, data) + struct.pack("<HHII", 0x0117, 4, 2, data + 8)
    block += struct.pack("<I4I", 0, data + 16, data + 28, 12, 12) + b"".join(strips) + b"end"
    picture = read(encode(Image.fromarray(corners()), "JPEG", exif=b"Exif\0\0" + block))
    assert picture.exif is not None
    assert picture.exif.endswith(bytes(24) + b"end")


def test_without_libvips_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("no module named pyvips")

    monkeypatch.setattr(sys.modules["liif_cli.images.read"], "vips", missing)
    with pytest.raises(InputError, match=r"needs libvips to be read: pip install 'pyvips\[binary\]'"):
        read(encode(Image.fromarray(corners()), "TIFF"))


def test_values_of_a_tiff_file_that_lie_in_the_same_bytes_do_not_fill_the_memory(tmp_path: Path) -> None:
    length, count = 2**22, 40
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + struct.pack("<HHII", 0x8769, 4, 1, 64)
    inner = struct.pack("<H", count)
    inner += b"".join(struct.pack("<HHII", 0x9286 + number, 7, length, 4096) for number in range(count))
    path = tmp_path / "a.tif"
    path.write_bytes((head.ljust(64, b"\0") + inner).ljust(4096, b"\0") + bytes(length))
    with path.open("rb") as file:
        tags = metadata_of(file)
    assert length < len(tags["exif"]) < 2**27


def test_the_stale_thumbnail_goes_and_the_rest_of_exif_stays_byte_for_byte() -> None:
    small = encode(Image.new("RGB", (16, 16)), "JPEG")
    entries = [(0x010F, 2, 4, b"abc\0"), (ORIENTATION, 3, 1, struct.pack("<HH", 6, 0))]
    first = 8
    second = first + 2 + 12 * len(entries) + 4
    thumbnail_at = second + 2 + 24 + 4
    block = b"II*\0" + struct.pack("<I", first) + struct.pack("<H", len(entries))
    block += b"".join(struct.pack("<HHI4s", *entry) for entry in entries) + struct.pack("<I", second)
    block += struct.pack("<H", 2) + struct.pack("<HHII", 0x0201, 4, 1, thumbnail_at)
    block += struct.pack("<HHII", 0x0202, 4, 1, len(small)) + struct.pack("<I", 0) + small
    picture = read(encode(Image.fromarray(corners()), "JPEG", exif=b"Exif\0\0" + block))
    assert picture.exif is not None
    assert small not in picture.exif
    assert len(picture.exif) == 6 + thumbnail_at
    again = Image.Exif()
    again.load(picture.exif)
    assert again[0x010F] == "abc"
    assert again[ORIENTATION] == 1
    assert not again.get_ifd(0x8769)
    assert picture.size == (40, 24)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_profile_and_metadata_are_carried(format: str) -> None:
    image = Image.fromarray(corners())
    options: dict[str, Any] = {"xmp": XMP} if format not in ("PNG", "TIFF") else {}  # those Pillow does not write
    content = encode(image, format, icc_profile=SRGB, exif=exif_block(), **options)
    picture = read(content)
    assert picture.icc == SRGB
    assert picture.format == format
    assert picture.exif is not None
    exif = Image.Exif()
    exif.load(picture.exif)
    assert exif[0x010F] == "A maker"
    assert exif.get_ifd(EXIF_DIRECTORY)[0x9003] == "2020:01:01 00:00:00"
    assert exif.get_ifd(EXIF_DIRECTORY)[0x927C] == b"note\0\1\2\3" * 9
    assert exif.get_ifd(0x8825)[1] == "N"
    if format not in ("PNG", "TIFF"):
        assert picture.xmp == XMP.replace(b'"6"', b'"1"')


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_profile_of_megabytes_is_read_from_png_too(dtype: Any) -> None:
    padded = SRGB + np.random.default_rng(0).bytes(1_500_000 - len(SRGB) % 4)
    long = struct.pack(">I", len(padded)) + padded[4:]  # a profile begins with its length
    pixels = corners().astype(dtype)
    picture = read(png(pixels, chunk(b"iCCP", b"name\0\0" + zlib.compress(long)) + chunk(b"eXIf", exif_block(6)[6:])))
    assert picture.icc is not None
    assert len(picture.icc) == len(long)
    assert picture.size == (40, 24)
    assert np.array_equal(picture.pixels, np.rot90(pixels, -1))


@pytest.mark.parametrize("quality", [1, 10, 35, 50, 75, 90, 95])
def test_the_quality_of_a_jpeg_is_known(quality: int) -> None:
    found = read(encode(Image.fromarray(corners()), "JPEG", quality=quality)).jpeg_quality
    assert found is not None
    assert abs(found - quality) <= (1 if quality > 10 else 10)  # entries of a coarse table stop at 255
    assert read(encode(Image.fromarray(corners()), "PNG")).jpeg_quality is None


def tiff_of_a_jpeg(jpeg: bytes) -> bytes:
    """A grey JPEG file as the only strip of a TIFF file, its tables where they were."""
    height, width = Image.open(io.BytesIO(jpeg)).size[::-1]
    tags = {256: width, 257: height, 258: 8, 259: 7, 262: 1, 273: 0, 277: 1, 278: height, 279: len(jpeg)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + jpeg


@pytest.mark.parametrize("quality", [50, 75, 94])
def test_the_quality_of_a_jpeg_in_a_tiff_is_known(tmp_path: Path, quality: int) -> None:
    image = Image.fromarray(corners())
    grey = encode(image.convert("L"), "JPEG", quality=quality)
    tiled = tmp_path / "tiled.tif"
    pyvips.Image.new_from_array(corners()).tiffsave(str(tiled), compression="jpeg", Q=quality, tile=True)
    encoded = encode(image, "TIFF", compression="jpeg", quality=quality)
    for picture in (
        read(encoded),
        from_pil(Image.open(io.BytesIO(encoded))),
        read(tiled),
        read(tiff_of_a_jpeg(grey)),
    ):
        assert (picture.format, picture.lossless) == ("TIFF", False)
        assert picture.jpeg_quality is not None
        assert abs(picture.jpeg_quality - quality) <= 1
    plain = read(encode(image, "TIFF", compression="tiff_lzw"))
    assert (plain.lossless, plain.jpeg_quality) == (True, None)
    # Tables that are cut short, missing, or something else tell nothing, and are no error.
    for content in (b"", b"\xff\xd8", grey[:30], b"\xff\xd8\xff\xda\0\x0c", bytes(100)):
        assert first_table(content) == []


def test_a_telephone_s_double_picture_is_a_jpeg() -> None:
    first, second = Image.fromarray(corners()), Image.fromarray(NOISE)
    picture = read(encode(first, "MPO", save_all=True, append_images=[second]))
    assert (picture.format, picture.size, picture.lossless) == ("JPEG", (24, 40), False)


def test_xmp_alone_turns_a_picture() -> None:
    assert read(encode(Image.fromarray(corners()), "JPEG", xmp=XMP)).size == (40, 24)


MODES = [
    ("1", "PNG", 1, 8),
    ("L", "PNG", 1, 8),
    ("LA", "PNG", 2, 8),
    ("P", "PNG", 3, 8),
    ("RGB", "PNG", 3, 8),
    ("RGBA", "PNG", 4, 8),
    ("I;16", "PNG", 1, 16),
    ("1", "TIFF", 1, 8),
    ("L", "TIFF", 1, 8),
    ("LA", "TIFF", 2, 8),
    ("P", "TIFF", 3, 8),
    ("RGB", "TIFF", 3, 8),
    ("RGBA", "TIFF", 4, 8),
    ("I;16", "TIFF", 1, 16),
    ("CMYK", "TIFF", 3, 8),
    pytest.param("YCbCr", "TIFF", 3, 8, marks=pytest.mark.skipif(PILLOW < "13", reason="Pillow before 13 cannot")),
    ("LAB", "TIFF", 3, 8),
    ("L", "JPEG", 1, 8),
    ("RGB", "JPEG", 3, 8),
    ("CMYK", "JPEG", 3, 8),
    ("1", "BMP", 1, 8),
    ("L", "BMP", 1, 8),
    ("P", "BMP", 3, 8),
    ("RGB", "BMP", 3, 8),
    ("P", "GIF", 3, 8),
    ("RGB", "WEBP", 3, 8),
    ("RGBA", "WEBP", 4, 8),
    ("RGB", "AVIF", 3, 8),
    ("RGBA", "AVIF", 4, 8),
]


@pytest.mark.parametrize(("mode", "format", "channels", "depth"), MODES)
def test_every_mode_becomes_grey_or_colour(mode: str, format: str, channels: int, depth: int) -> None:
    image = Image.fromarray(corners())
    if mode == "I;16":
        image = Image.fromarray(np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 60)
    elif mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    else:
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        image = image.convert(mode)
    picture = read(encode(image, format))
    assert (picture.channels, picture.depth, picture.size) == (channels, depth, (24, 40))
    assert picture.pixels.flags["C_CONTIGUOUS"]
    if mode == "I;16":
        assert np.array_equal(picture.pixels[..., 0], np.asarray(image))
    elif channels >= 3:
        # Far from exact where a palette of 216 colours or a press's inks stand between.
        exact = mode in ("RGB", "RGBA") and format in ("PNG", "TIFF", "BMP")
        apart = 0 if exact else 90 if mode in ("P", "CMYK") else 16
        assert np.abs(picture.pixels[4, 6, :3].astype(int) - (200, 30, 30)).max() <= apart
        assert np.abs(picture.pixels[19, 6, :3].astype(int) - (30, 30, 200)).max() <= apart


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["png", "tiff", "tiff big-endian"])
def test_sixteen_bits_are_read_whole(channels: int, kind: str) -> None:
    array = np.random.default_rng(0).integers(0, 1 << 16, (24, 40, channels), dtype=np.uint16)
    if kind == "png":
        content = png(array)
    else:
        buffer = io.BytesIO()
        extra = ["unassalpha"] if channels in (2, 4) else None
        photometric = "minisblack" if channels <= 2 else "rgb"
        order = ">" if "big" in kind else "<"
        options = {"photometric": photometric, "extrasamples": extra, "planarconfig": "contig", "byteorder": order}
        tifffile.imwrite(buffer, array if channels > 1 else array[..., 0], **options)
        content = buffer.getvalue()
    assert np.array_equal(read(content).pixels, array)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_several_pages_is_refused_and_previews_are_no_pages(order: str, wide: bool) -> None:
    def pages(*sizes: int, reduced: bool = False) -> bytes:
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, byteorder=order, bigtiff=wide) as writer:
            for number, size in enumerate(sizes):
                writer.write(NOISE[:size, :size], photometric="rgb", subfiletype=int(reduced and number > 0))
        return buffer.getvalue()

    for ask in (read, read_header):
        with pytest.raises(InputError, match="holds 3 pages"):
            ask(pages(20, 16, 20))
        assert ask(pages(20, 8)).size == (20, 20)
        assert ask(pages(20, 20, reduced=True)).size == (20, 20)


@pytest.mark.parametrize(("height", "marked"), [(9, False), (3, True)])
def test_a_narrow_second_page_is_one_and_a_small_one_that_says_so(height: int, marked: bool) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for pixels in (NOISE[:20, :20], NOISE[:height, :20] if not marked else NOISE[:height, :height]):
            writer.write(pixels, photometric="rgb", subfiletype=2 * marked)
    with pytest.raises(InputError, match="holds 2 pages"):
        read(buffer.getvalue())


def test_a_lab_tiff_is_read_with_its_header() -> None:
    lab = ImageCms.profileToProfile(
        Image.fromarray(NOISE), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    buffer = io.BytesIO()
    lab.save(buffer, "TIFF")
    header, picture = read_header(buffer.getvalue()), read(buffer.getvalue())
    assert (header.size, header.channels, header.depth) == (picture.size, picture.channels, picture.depth)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_becomes_alpha(depth: int, channels: int) -> None:
    dtype = np.uint8 if depth == 8 else np.uint16
    array = np.full((4, 4, channels), 100, dtype)
    array[1, 1] = 7
    picture = read(png(array, chunk(b"tRNS", struct.pack(">H", 7) * channels)))
    assert picture.channels == channels + 1
    assert picture.alpha is not None
    assert picture.alpha[1, 1] == 0
    assert picture.alpha[0, 0] == (1 << depth) - 1
    assert picture.pixels[0, 0, 0] == 100


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"])
def test_a_palette_with_transparency_becomes_rgba(transparency: int | bytes) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    picture = read(encode(image, "PNG", transparency=transparency))
    assert picture.pixels[0, 0, 3] == 0
    assert tuple(picture.pixels[1, 1]) == (0, 0, 255, 128 if isinstance(transparency, bytes) else 255)


def test_cmyk_is_converted_through_a_profile_and_carries_srgb() -> None:
    inks = np.zeros((4, 4, 4), np.uint8)
    inks[:2, :, 1:3] = 255  # magenta and yellow: red
    for format in ("JPEG", "TIFF"):
        picture = read(encode(Image.frombytes("CMYK", (4, 4), inks.tobytes()), format))
        red, white = picture.pixels[0, 0].astype(int), picture.pixels[3, 3].astype(int)
        assert white.min() > 240
        assert red[0] > 180
        assert red[1:].max() < 40
        assert red.max() < 245  # a press's red is not a screen's: the naive formula would give (255, 0, 0)
        assert picture.icc is not None
        assert picture.icc[16:20] == b"RGB "
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, inks.astype(np.uint16) * 257, photometric="separated")
    deep = read(buffer.getvalue())
    assert deep.depth == 16
    assert np.abs(deep.pixels[0, 0] / 257 - red).max() < 8


def test_a_profile_of_other_colours_is_dropped() -> None:
    assert read(encode(Image.new("L", (4, 4)), "JPEG", icc_profile=SRGB)).icc is None


def test_premultiplied_tiff_is_made_straight() -> None:
    array = np.zeros((4, 4, 4), np.uint8)
    array[...] = (100, 50, 25, 128)
    for dtype, factor in ((np.uint8, 1), (np.uint16, 257)):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, array.astype(dtype) * factor, photometric="rgb", extrasamples=["assocalpha"])
        pixel = read(buffer.getvalue()).pixels[0, 0] / factor
        assert np.abs(pixel - (199, 99.6, 49.8, 128)).max() < 1.5


def test_white_is_zero_tiff_is_turned() -> None:
    for dtype in (np.uint8, np.uint16):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.full((4, 4), 10, dtype), photometric="miniswhite")
        assert read(buffer.getvalue()).pixels[0, 0, 0] == np.iinfo(dtype).max - 10


def write_file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def float_tiff() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((4, 4), np.float32))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.png", b"", "is empty"),
        ("text.png", b"this is no picture at all", "not a picture"),
        ("page.jpg", b"<!DOCTYPE html><html></html>", "not a picture"),
        ("movie.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif"),
        ("general.heic", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "pillow-heif"),
        ("float.tif", float_tiff(), "float"),
        ("signature.png", b"\x89PNG\r\n\x1a\n", "damaged|cut short"),
        *[
            (f"cut.{format.lower()}", encode(Image.fromarray(NOISE), format)[:-2000], "cut short|damaged")
            for format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF")
        ],
        ("cut16.png", png(NOISE.astype(np.uint16) * 257)[:-9000], "cut short|damaged"),
        ("cut.gif", encode(Image.fromarray(NOISE), "GIF")[:-2000], "cut short|damaged"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    path = write_file(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "missing.png")
    with pytest.raises(InputError, match="folder"):
        read(tmp_path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="this user may read anything")
def test_a_closed_file_is_named(tmp_path: Path) -> None:
    path = write_file(tmp_path, "a.png", b"x")
    path.chmod(0)
    with pytest.raises(InputError, match="permission"):
        read(path)


def test_a_small_file_of_many_pixels_is_refused() -> None:
    # 60,000 x 60,000 by its header; the pixels do not matter.
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    )
    with pytest.raises(InputError, match="million pixels"):
        read(bomb)
    with pytest.raises(InputError, match="has 4,096 pixels, more than the limit of 100"):
        read(encode(Image.fromarray(NOISE), "PNG"), max_pixels=100)
    assert read(encode(Image.fromarray(NOISE), "PNG"), max_pixels=None).size == (64, 64)


def test_pillow_limit_neither_warns_nor_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read(encode(Image.fromarray(NOISE), "PNG")).size == (64, 64)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    path = write_file(tmp_path, "a [page=3].png", encode(Image.fromarray(NOISE), "JPEG"))
    assert read(path).format == "JPEG"
    deep = write_file(tmp_path, "b [page=3].tif", png(NOISE.astype(np.uint16)))
    assert read(deep).depth == 16


def test_paths_bytes_and_open_files_give_the_same(tmp_path: Path) -> None:
    content = png(NOISE.astype(np.uint16) * 257)
    path = write_file(tmp_path, "a.png", content)
    with path.open("rb") as file:
        pictures = [read(path), read(content), read(file)]
    assert all(np.array_equal(picture.pixels, pictures[0].pixels) for picture in pictures)


def test_many_threads_read_at_once_and_leave_the_warnings_alone(recwarn: pytest.WarningsRecorder) -> None:
    content = encode(Image.fromarray(NOISE), "TIFF", exif=exif_block())
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                read(content)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", ">f4", np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4)])
def test_arrays_go_in_and_out_as_they_are(dtype: Any, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).random(shape) * (1 if np.dtype(dtype).kind == "f" else 250)).astype(dtype)
    back = to_array(from_array(array).pixels, array)
    assert back.dtype == array.dtype
    # Doubles pass through single precision, which is far more than any picture has.
    assert np.allclose(back, array, rtol=0, atol=1e-7 if dtype == np.float64 else 0)


@pytest.mark.parametrize(
    "array",
    [np.zeros(5), np.zeros((2, 2, 5)), np.zeros((0, 4)), np.full((2, 2), np.nan), np.full((2, 2), 255.0),
     np.zeros((2, 2), np.int64), np.zeros((2, 2), bool)],
)  # fmt: skip
def test_arrays_of_other_kinds_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError):
        from_array(array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pillow_images_go_in_and_out(mode: str) -> None:
    image = Image.fromarray(corners()).convert(mode)
    image.info["icc_profile"] = SRGB
    picture = from_pil(image)
    back = to_pil(picture.pixels, picture)
    assert back.size == image.size
    assert back.mode == {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}.get(mode, mode)
    if mode in ("RGB", "RGBA"):
        assert back.info["icc_profile"] == SRGB
        assert np.array_equal(np.asarray(back), np.asarray(image))


def test_a_float_pillow_image_is_refused() -> None:
    with pytest.raises(InputError, match="floating"):
        from_pil(Image.new("F", (4, 4)))


def test_a_lossless_webp_is_known_and_stays_lossless(tmp_path: Path) -> None:
    source = read(encode(Image.fromarray(NOISE), "WEBP", lossless=True))
    assert source.lossless
    assert not read(encode(Image.fromarray(NOISE), "WEBP")).lossless
    write(tmp_path / "a.webp", source.pixels, source)
    assert np.array_equal(read(tmp_path / "a.webp").pixels, NOISE)


def test_resolution_is_carried() -> None:
    for format in ("PNG", "JPEG", "TIFF", "BMP"):
        assert read(encode(Image.fromarray(NOISE), format, dpi=(300, 150))).dpi == pytest.approx((300, 150), abs=0.02)


def test_picture_answers() -> None:
    picture = Picture(np.zeros((3, 5, 2), np.uint16))
    assert (picture.size, picture.channels, picture.depth) == ((3, 5), 2, 16)
    assert picture.is_grey
    assert picture.has_alpha
    assert picture.constant_alpha == 0


def heavy_png() -> bytes:
    padded = SRGB + np.random.default_rng(0).bytes(1_500_000 - len(SRGB) % 4)
    long = struct.pack(">I", len(padded)) + padded[4:]  # a profile begins with its length
    return png(corners(), chunk(b"iCCP", b"name\0\0" + zlib.compress(long)))


def test_a_png_with_much_beside_its_pixels_has_a_header_and_no_frames() -> None:
    before = PngImagePlugin.MAX_TEXT_CHUNK
    content = heavy_png()
    assert read_header(io.BytesIO(content)).size == (24, 40)
    assert read_animation(content) is None
    assert before == PngImagePlugin.MAX_TEXT_CHUNK


@pytest.mark.parametrize(
    ("tags", "dpi"),
    [
        ({}, None),
        ({0x011A: 300.0, 0x011B: 150.0, 0x0128: 2}, (300, 150)),
        ({0x011A: 300.0, 0x011B: 300.0}, (300, 300)),  # inches, where nothing is said
        ({0x011A: 100.0, 0x011B: 100.0, 0x0128: 3}, (254, 254)),
        ({0x011A: 100.0, 0x011B: 100.0, 0x0128: 1}, None),
        ({0x011A: 300.0}, None),
    ],
)
def test_of_a_jpeg_the_resolution_is_what_it_states(tags: dict[int, Any], dpi: tuple[int, int] | None) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A maker"
    for tag, value in tags.items():
        exif[tag] = value
    image = Image.fromarray(corners())
    assert read(encode(image, "JPEG", exif=exif)).dpi == dpi
    assert read(encode(image, "JPEG", exif=exif, dpi=(72, 72))).dpi == (72, 72)


def test_xmp_does_not_turn_an_avif_which_has_a_field_for_it() -> None:
    content = encode(Image.fromarray(corners()), "AVIF", xmp=XMP)
    picture = read(content)
    assert picture.size == read_header(content).size == (24, 40)
    assert picture.xmp == XMP.replace(b'"6"', b'"1"')


def test_a_moving_png_keeps_its_speed() -> None:
    """30,000 frames in 1,001 seconds, as films have it: none of them lasts a whole number of milliseconds."""
    durations = animation._durations_ms([1001 / 30] * 300)
    assert sum(durations) == 10_010
    assert set(durations) == {33, 34}
    assert animation._durations_ms([None, 0, 10, 10.4, 11, 40]) == (100, 100, 100, 100, 11, 40)
    assert min(animation._durations_ms([10.6] * 10)) > 10  # at which browsers slow down


@pytest.mark.parametrize(("depth", "shade"), [(1, 1), (2, 3), (2, 1), (4, 15), (4, 7), (8, 7)])
def test_the_transparent_shade_of_few_bits_is_transparent(depth: int, shade: int) -> None:
    """Eight pixels, two of them of that shade."""
    greatest = 2**depth - 1
    shades = [0 if shade else greatest, shade, *[0 if shade else greatest] * 5, shade]
    bits = "".join(f"{value:0{depth}b}" for value in shades)
    row = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    header = struct.pack(">IIBBBBB", 8, 1, depth, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", shade))
    body += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    picture = read(b"\x89PNG\r\n\x1a\n" + body)
    assert picture.channels == 2
    assert picture.alpha is not None
    assert (picture.alpha[0] == 0).tolist() == [value == shade for value in shades]


def test_a_tiff_that_begins_with_a_preview_is_refused_and_one_that_is_a_preview_is_not(tmp_path: Path) -> None:
    small, large = corners(12, 20), corners(48, 80)
    raw, alone = tmp_path / "camera.nef", tmp_path / "alone.tif"
    with tifffile.TiffWriter(raw) as file:
        file.write(small, photometric="rgb", subfiletype=1)
        file.write(large, photometric="rgb")
    tifffile.imwrite(alone, small, photometric="rgb", subfiletype=1)
    for look in (read, read_header):
        with pytest.raises(InputError, match=r"camera.nef: begins with a preview, as camera raws do; develop it"):
            look(raw)
    assert read(alone).size == (12, 20)
    assert read_header(alone).size == (12, 20)
    below = tmp_path / "below.dng"  # what raws have it like: the picture is in a directory below
    with tifffile.TiffWriter(below) as file:
        file.write(small, photometric="rgb", subfiletype=1, subifds=1)
        file.write(large, photometric="rgb")
    with pytest.raises(InputError, match="begins with a preview"):
        read(below)


def test_cmyk_with_a_fifth_channel_is_refused_rather_than_made_opaque(tmp_path: Path) -> None:
    path = tmp_path / "five.tif"
    tifffile.imwrite(path, np.zeros((6, 7, 5), np.uint8), photometric="separated", extrasamples=["unassalpha"])
    with pytest.raises(InputError, match=r"five.tif: has 5 channels; flatten it to CMYK"):
        read(path)


def test_what_announces_more_behind_the_picture_is_left_out_of_xmp() -> None:
    xmp = (
        b'<rdf:Description tiff:Orientation="1" hdrgm:Version="1.0" GCamera:MotionPhoto="1"'
        b" GCamera:MotionPhotoVersion='1' xmpNote:HasExtendedXMP='0123456789ABCDEF' dc:format='image/jpeg'>\n"
        b"<Container:Directory><rdf:Seq><rdf:li"
        b' Item:Semantic="GainMap"/></rdf:Seq></Container:Directory><hdrgm:GainMapMax>3</hdrgm:GainMapMax>'
        b"<dc:title>Sea</dc:title></rdf:Description>"
    )
    picture = read(encode(Image.fromarray(corners()), "JPEG", xmp=xmp))
    assert picture.xmp == (
        b"<rdf:Description tiff:Orientation=\"1\" dc:format='image/jpeg'>\n<dc:title>Sea</dc:title></rdf:Description>"
    )


IPTC = b"\x1c\x02\x78\x00\x09A caption\x1c\x02\x50\x00\x06Author"


def resource(number: int, name: bytes, content: bytes) -> bytes:
    """One of Photoshop's: its name has its length before it, and both it and the content are of even length."""
    named = bytes([len(name)]) + name
    parts = [named + bytes(len(named) % 2), struct.pack(">I", len(content)), content + bytes(len(content) % 2)]
    return b"8BIM" + struct.pack(">H", number) + b"".join(parts)


RESOURCES = resource(0x03ED, b"", bytes(16)) + resource(0x0BB7, b"a path", b"odd") + resource(0x0404, b"", IPTC)


def tiff_with(tag: int, kind: int, content: bytes, order: str) -> bytes:
    """A grey pixel with one tag more; numbers of four bytes are said of content that is none."""
    count = len(content) // (4 if kind == 4 else 1)
    tags = [(0x0100, 4, 1, 1), (0x0101, 4, 1, 1), (0x0102, 3, 1, 8), (0x0106, 3, 1, 1), (0x0111, 4, 1, 8)]
    tags += [(0x0115, 3, 1, 1), (0x0116, 4, 1, 1), (0x0117, 4, 1, 1), (tag, kind, count, 10)]
    fields = b"".join(struct.pack(order + ("HHIHxx" if each[1] == 3 else "HHII"), *each) for each in tags)
    start = 10 + len(content) + len(content) % 2
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start) + b"\x07\0"
    return head + content.ljust(start - 10, b"\0") + struct.pack(order + "H", len(tags)) + fields + bytes(4)


def raw_profile(kind: str, content: bytes) -> bytes:
    """As ImageMagick writes what PNG has no chunk for."""
    text = f"\n{kind}\n{len(content):8}\n" + "\n".join(re.findall(".{1,72}", content.hex())) + "\n"
    return chunk(b"zTXt", f"Raw profile type {kind}\0\0".encode() + zlib.compress(text.encode()))


@pytest.mark.parametrize(
    "content",
    [
        encode(Image.fromarray(corners()), "JPEG", extra=b"\xff\xed" + struct.pack(">H", 2 + 14 + len(RESOURCES))
               + b"Photoshop 3.0\0" + RESOURCES),
        png(corners(), raw_profile("iptc", RESOURCES)),
        png(corners(), raw_profile("8bim", RESOURCES)),
        png(corners().astype(np.uint16), raw_profile("iptc", IPTC)),
        tiff_with(0x83BB, 7, IPTC, "<"),
        tiff_with(0x83BB, 1, IPTC, ">"),
        tiff_with(0x8649, 7, RESOURCES, ">"),
    ],
    ids=["jpeg", "png", "png-8bim", "png-16", "tiff", "tiff-big-endian", "tiff-resources"],
)  # fmt: skip
def test_an_agency_s_words_are_read(content: bytes) -> None:
    assert read(content).iptc == IPTC


@pytest.mark.parametrize("order", ["<", ">"])
def test_iptc_that_is_said_to_be_long_numbers_is_taken_as_it_lies(order: str) -> None:
    padded = IPTC + bytes(-len(IPTC) % 4)  # as Photoshop does
    assert read(tiff_with(0x83BB, 4, padded, order)).iptc == padded


@pytest.mark.parametrize(
    "block", [b"", b"\x1d" + IPTC, b"8BIM", b"8BIM\x04\x04\xff", RESOURCES[:40], resource(0x0404, b"", b"none")]
)
def test_damaged_iptc_is_none(block: bytes) -> None:
    assert read(png(corners(), raw_profile("iptc", block))).iptc is None
    assert read(tiff_with(0x8649, 7, block.ljust(8, b"\0"), "<")).iptc is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_texts_of_a_png_are_read_but_for_those_that_are_false_or_carried_otherwise(dtype: Any) -> None:
    ours = chunk(b"tEXt", b"parameters\0a cat\nSteps: 20") + chunk(b"tEXt", b"Author\0Zo\xeb")
    ours += chunk(b"iTXt", b"Title\0\0\0en\0\0\xe7\x8c\xab") + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"long"))
    others = chunk(b"tEXt", b"Thumb::Image::Width\x00128") + chunk(b"tEXt", b"exif:Orientation\x006")
    others += chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.replace(b"6", b"1")) + raw_profile("iptc", IPTC)
    expected = [("parameters", "a cat\nSteps: 20"), ("Author", "Zo\u00eb"), ("Title", "\u732b"), ("Comment", "long")]
    whole = png(corners().astype(dtype), others + ours)
    assert list(read(whole).texts) == expected
    behind = png(corners().astype(dtype))
    end = behind.index(b"IEND") - 4
    assert list(read(behind[:end] + others + ours + behind[end:]).texts) == expected


def test_heic_is_read_upright_with_what_it_carries(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    y, x = np.mgrid[:60, :80]
    pixels = np.stack([3 * x, 4 * y, x + y], axis=-1).astype(np.uint8)
    file = pillow_heif.from_pillow(Image.fromarray(pixels))
    file.save(tmp_path / "a.heic", quality=95, exif=exif_block(6), xmp=XMP.replace(b"6", b"1"))
    picture, header = read(tmp_path / "a.heic"), read_header(tmp_path / "a.heic")
    assert (picture.format, picture.size) == ("HEIF", (80, 60))
    assert (header.size, header.channels, header.depth) == ((80, 60), 3, 8)
    assert np.abs(picture.pixels.astype(int) - np.rot90(pixels, -1)).mean() < 3
    assert picture.xmp == XMP.replace(b"6", b"1")
    assert picture.exif is not None
    exif = Image.Exif()
    exif.load(picture.exif)
    assert (exif[0x010F], exif[ORIENTATION]) == ("A maker", 1)


def moving_png(frames: list[tuple[np.ndarray, int, int, int, int]], size: int, palette: bytes = b"") -> bytes:
    """An APNG file of a square canvas: of each frame pixels (h, w, channels), left, top, blend and disposal."""
    kind = 3 if palette else {1: 0, 3: 2, 4: 6}[frames[0][0].shape[2]]
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, kind, 0, 0, 0)), palette]
    parts.append(chunk(b"acTL", struct.pack(">II", len(frames), 0)))
    number = 0
    for index, (pixels, left, top, blend, disposal) in enumerate(frames):
        height, width = pixels.shape[:2]
        control = struct.pack(">IIIIIHHBB", number, width, height, left, top, 1, 10, disposal, blend)
        rows = b"".join(b"\0" + row.tobytes() for row in pixels)
        parts.append(chunk(b"fcTL", control))
        name, before = (b"fdAT", struct.pack(">I", number + 1)) if index else (b"IDAT", b"")
        parts.append(chunk(name, before + zlib.compress(rows)))
        number += 2 if index else 1
    return b"".join([*parts, chunk(b"IEND", b"")])


@pytest.mark.parametrize("disposal", [0, 1, 2], ids=["stays", "cleared", "previous"])
@pytest.mark.parametrize("backdrop", [(250, 10, 10, 255), (0, 0, 0, 0), (10, 20, 250, 90)])
def test_the_frames_of_a_moving_png_are_laid_over_each_other(backdrop: tuple, disposal: int) -> None:
    def filled(side: int, colour: tuple) -> np.ndarray:
        return np.full((side, side, 4), colour, np.uint8)

    def over(above: tuple, below: tuple) -> np.ndarray:
        """Porter and Duff, 1984, for colours that are not multiplied by their alpha."""
        (a, b), (c, d) = ((np.array(colour[:3]), colour[3] / 255) for colour in (above, below))
        alpha = b + d * (1 - b)
        mixed = (a * b + c * d * (1 - b)) / alpha
        return np.array([*mixed, 255 * alpha])

    veil, dot = (0, 255, 0, 128), (9, 8, 7, 60)
    frames = [
        (filled(8, backdrop), 0, 0, 0, 0),
        (filled(4, veil), 1, 2, 1, disposal),
        (filled(2, dot), 2, 3, 1, 0),
        (filled(3, dot), 0, 0, 0, 0),
    ]
    animation = read_animation(moving_png(frames, 8))
    assert animation is not None
    seen = [frame.pixels.astype(float) for frame in animation.frames]
    once = over(veil, backdrop)
    left = {0: once, 1: (0, 0, 0, 0), 2: backdrop}[disposal]
    assert np.abs(seen[1][3, 2] - once).max() <= 1
    assert np.abs(seen[1][0, 0] - backdrop).max() == 0
    assert np.abs(seen[2][5, 4] - left).max() <= 1
    twice = over(dot, tuple(left))
    assert np.abs(seen[2][3, 2] - twice).max() <= 2
    assert np.abs(seen[3][1, 1] - dot).max() == 0
    assert np.abs(seen[3][4, 3] - twice).max() <= 2


def test_what_a_moving_png_with_a_palette_clears_is_transparent() -> None:
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 0, 255])) + chunk(b"tRNS", b"\xff\x80")
    one, other = np.zeros((8, 8, 1), np.uint8), np.ones((2, 2, 1), np.uint8)
    animation = read_animation(moving_png([(one, 0, 0, 0, 1), (other, 1, 1, 0, 0)], 8, palette))
    assert animation is not None
    first, second = (frame.pixels for frame in animation.frames)
    assert first[0, 0].tolist() == [255, 0, 0, 255]
    assert second[0, 0, 3] == 0
    assert second[1, 1].tolist() == [0, 0, 255, 128]


RED, GREEN, BLUE, WHITE = [255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [255, 255, 255, 255]
HOLE = 0  # alpha


def gif(*frames: tuple[list[int], int, int | None, int], width: int = 4) -> bytes:
    """A GIF file of one row, by frames (indices of red, green, blue, white; left; transparent index; disposal)."""
    parts = [b"GIF89a", struct.pack("<HHBBB", width, 1, 0x81, 0, 0), bytes(RED[:3] + GREEN[:3] + BLUE[:3] + WHITE[:3])]
    for indices, left, transparent, disposal in frames:
        image = Image.fromarray(np.array([indices], np.uint8))
        image.putpalette(bytes(range(256)) * 3)
        place = struct.pack("<HH", len(indices), 1)
        encoded = encode(image, "GIF", optimize=False)
        data = encoded[encoded.index(b",\0\0\0\0" + place) + 10 : -1]
        control = struct.pack("<BHB", disposal << 2 | (transparent is not None), 7, transparent or 0)
        parts += [b"!\xf9\x04", control, b"\0,", struct.pack("<HH", left, 0), place, b"\0", data]
    return b"".join([*parts, b";"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # What the first frame does not cover is nothing, not the palette's first colour.
        (gif(([1, 1], 1, None, 0), ([2], 0, None, 0)), [[HOLE, GREEN, GREEN, HOLE], [BLUE, GREEN, GREEN, HOLE]]),
        # A frame that says nothing of disposal after one that is cleared stays.
        (
            gif(([0, 0, 0, 0], 0, None, 1), ([1], 0, None, 2), ([2], 1, None, 0), ([3], 3, None, 0)),
            [[RED] * 4, [GREEN, RED, RED, RED], [HOLE, BLUE, RED, RED], [HOLE, BLUE, RED, WHITE]],
        ),
        # Cleared is transparent, whatever colour the transparent index has; and what was before comes back.
        (
            gif(([0, 0, 0, 0], 0, None, 1), ([3, 1, 3], 1, 3, 2), ([3], 0, 3, 3), ([2], 3, None, 3), ([1], 0, 3, 1)),
            [
                [RED] * 4,
                [RED, RED, GREEN, RED],
                [RED, HOLE, HOLE, HOLE],
                [RED, HOLE, HOLE, BLUE],
                [GREEN, HOLE, HOLE, HOLE],
            ],
        ),
        # As browsers take what is not in the standard.
        (
            gif(([0, 0, 0, 0], 0, None, 1), ([1], 0, None, 4), ([2], 1, None, 1)),
            [[RED] * 4, [GREEN, *[RED] * 3], [RED, BLUE, RED, RED]],
        ),
        # Beyond the screen nothing is seen.
        (gif(([0, 0, 0, 0], 0, None, 1), ([1, 1, 1], 2, None, 1)), [[RED] * 4, [RED, RED, GREEN, GREEN]]),
    ],
    ids=["uncovered", "unsaid", "cleared", "unknown", "beyond"],
)
def test_the_frames_of_a_gif_are_laid_over_each_other_as_browsers_do(content: bytes, expected: list[Any]) -> None:
    animation = read_animation(content)
    assert animation is not None
    assert animation.durations_ms == (70,) * len(expected)
    for frame, colours in zip(animation.frames, expected, strict=True):
        for pixel, colour in zip(frame.pixels[0].tolist(), colours, strict=True):
            assert pixel[3:] == [0] if colour == HOLE else pixel == colour[: frame.channels]


def test_what_a_still_gif_does_not_cover_is_transparent() -> None:
    content = gif(([1, 1], 1, None, 0))
    still = read(content)
    assert still.pixels[0].tolist() == [[0] * 4, GREEN, GREEN, [0] * 4]
    assert read_header(io.BytesIO(content)).channels == 4
    assert read(gif(([1] * 4, 0, None, 0))).pixels[0].tolist() == [GREEN[:3]] * 4


def test_a_gif_that_clears_what_was_opaque_has_holes() -> None:
    hollow = Image.new("RGBA", (8, 8))
    hollow.paste("blue", (2, 2, 5, 5))
    content = encode(Image.new("RGBA", (8, 8), "red"), "GIF", save_all=True, append_images=[hollow], disposal=2)
    animation = read_animation(content)
    assert animation is not None
    assert animation.frames[1].pixels[3, 3].tolist() == BLUE
    assert animation.frames[1].pixels[0, 0, 3] == 0


@pytest.mark.parametrize("transparency", [None, 255])
def test_a_gif_that_begins_grey_and_goes_on_in_colour_is_read(transparency: int | None) -> None:
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    more = {} if transparency is None else {"transparency": transparency}
    content = encode(grey, "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16), (9, 99, 199))], **more)
    animation = read_animation(content)
    assert animation is not None
    assert animation.frames[0].pixels[3, 5, :3].tolist() == [53] * 3
    assert np.abs(animation.frames[1].pixels[3, 5, :3].astype(int) - (9, 99, 199)).max() < 9


def test_a_small_gif_with_a_frame_of_many_pixels_is_refused() -> None:
    content = bytearray(gif(([0, 0, 0, 0], 0, None, 1), ([1], 0, None, 1)))
    at = content.rindex(b",\0\0\0\0\x01\0\x01\0")
    content[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(InputError, match="pixels"):
        read_animation(bytes(content), max_pixels=1000)


def test_a_gif_that_is_cut_short_is_read_where_nothing_is_missing() -> None:
    hard = Image.fromarray(NOISE)
    content = encode(hard, "GIF", save_all=True, append_images=[hard.rotate(90)])
    whole, ended = read_animation(content), read_animation(content[:-2])  # without the end of blocks, and of the file
    assert whole is not None
    assert ended is not None
    assert np.array_equal(whole.frames[1].pixels, ended.frames[1].pixels)
    with pytest.raises(InputError, match="cut short"):
        read_animation(content[:-500])


def test_of_a_gif_no_more_frames_are_read_than_were_counted() -> None:
    """Pillow's count, by which memory is planned, ends at an extension that other readers pass over."""
    frames = [([1, 1, 1, 1], 0, None, 1)] * 50
    content = gif(*frames)
    at = [place for place in range(len(content)) if content.startswith(b"!\xf9", place)][2]
    content = content[:at] + b"!\x01\0\x05!\xfe\x04ab\0;\0" + content[at:]
    header, animation = read_header(content), read_animation(content)
    assert animation is not None
    assert len(animation.frames) <= header.frames


def test_an_interlaced_moving_png_is_read() -> None:
    frames = [(np.full((1, 1, 3), value, np.uint8), 0, 0, 0, 0) for value in (10, 20, 30)]
    content = moving_png(frames, 1)
    header = content.index(b"IHDR") + 4
    interlaced = content[header : header + 12] + b"\1"  # of one pixel: its rows are the same
    content = content[: header - 8] + chunk(b"IHDR", interlaced) + content[header + 17 :]
    animation = read_animation(content)
    assert animation is not None
    assert [int(frame.pixels[0, 0, 0]) for frame in animation.frames] == [10, 20, 30]


def test_a_frame_that_reaches_beyond_the_screen_of_a_gif_ends_with_it() -> None:
    frames = [Image.fromarray(np.full((6, 8), value, np.uint8)) for value in (10, 200)]
    content = bytearray(encode(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=2))
    at = content.rindex(b"\x2c\0\0\0\0\x08\0\x06\0")  # the second frame's place and size
    content[at + 1 : at + 5] = struct.pack("<HH", 3, 2)
    animation = read_animation(bytes(content))
    assert animation is not None
    assert [frame.size for frame in animation.frames] == [(6, 8), (6, 8)]
    assert animation.frames[1].pixels[4, 5, 0] == 200


def with_extra(path: Path, channels: int, kinds: list[str], photometric: str) -> Path:
    pixels = np.full((6, 7, channels), 80, np.uint8)
    pixels[..., : channels - len(kinds)] = 200
    pixels[..., channels - len(kinds) :] = [[10, 60, 110][: len(kinds)]]
    tifffile.imwrite(path, pixels, photometric=photometric, extrasamples=kinds)
    return path


@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
@pytest.mark.parametrize(
    ("kinds", "alpha"),
    [
        (["unassalpha"], 10),
        (["unspecified"], None),  # a saved selection
        (["unspecified", "unassalpha"], 60),
        (["unassalpha", "unspecified"], 10),
        (["unspecified", "unspecified", "unspecified"], None),
    ],
)
def test_of_a_tiff_only_the_channels_that_are_seen_are_read(
    tmp_path: Path, photometric: str, kinds: list[str], alpha: int | None
) -> None:
    colours = 3 if photometric == "rgb" else 1
    path = with_extra(tmp_path / "a.tif", colours + len(kinds), kinds, photometric)
    picture, header = read(path), read_header(path)
    assert picture.channels == header.channels == colours + (alpha is not None)
    assert (picture.colour == 200).all()
    assert alpha is None or (picture.alpha == alpha).all()


def test_tiffs_of_rare_compression_are_read_and_rare_depths_are_not_called_damaged(tmp_path: Path) -> None:
    pixels = corners()
    for compression in ("zstd", "lzma"):
        path = tmp_path / f"{compression}.tif"
        Image.fromarray(pixels).save(path, compression=compression)
        assert np.array_equal(read(path).pixels, pixels)
        assert read_header(path).channels == 3
    # Twelve bits a sample, as cameras of microscopes have it.
    tags = [(256, 4), (257, 2), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 2), (279, 12)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    (tmp_path / "deep.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + bytes(12))
    with pytest.raises(InputError, match=r"deep.tif: is of a kind that cannot be decoded here .*convert it"):
        read(tmp_path / "deep.tif")


def test_large_tiffs_are_not_unpacked_into_a_file_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(
        tmp_path / "large.tif", np.zeros((3000, 6000, 3), np.uint16), photometric="rgb", compression="zlib"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))  # where libvips would put more than 100 MB
    assert read(tmp_path / "large.tif").size == (3000, 6000)


def test_xmp_that_imagemagick_put_into_a_png_is_read() -> None:
    digits = XMP.hex()
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type xmp", f"\nxmp\n{len(XMP):8}\n{digits}\n", zip=True)
    picture = read(encode(Image.fromarray(corners()), "PNG", pnginfo=info))
    assert picture.xmp == XMP.replace(b'"6"', b'"1"')
    assert picture.size == (40, 24)


def test_exif_that_imagemagick_put_into_a_png_is_read_as_it_is_and_without_the_pixels() -> None:
    block = exif_block(6)
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    content = encode(Image.fromarray(corners()), "PNG", pnginfo=info)
    picture = read(content)
    assert picture.size == (40, 24)
    assert picture.exif == metadata.upright_exif(block)
    # Its header is known where the pixels cannot be: they were not unpacked, whatever they would become.
    damaged = bytearray(content)
    damaged[content.index(b"IDAT") + 10 :] = bytes(len(content) - content.index(b"IDAT") - 10)
    assert read_header(bytes(damaged)).size == (40, 24)
    bad = PngImagePlugin.PngInfo()
    bad.add_text("Raw profile type exif", "\nexif\n       3\nabc\n", zip=True)
    assert read(encode(Image.fromarray(corners()), "PNG", pnginfo=bad)).exif is None


def test_exif_with_its_mark_twice_is_read() -> None:
    picture = read(png(corners(), chunk(b"eXIf", exif_block(6))))  # a PNG file has it without
    assert picture.size == (40, 24)
    assert picture.exif == metadata.upright_exif(exif_block(6))


def test_a_lab_tiff_of_16_bits_is_16_bit_srgb(tmp_path: Path) -> None:
    stored = np.zeros((8, 9, 3), np.int16)
    stored[:] = -32768 + 0, 0, 0  # unsigned lightness: half of 65,535
    path = tmp_path / "lab.tif"
    tifffile.imwrite(path, stored.view(np.uint16), photometric="cielab")
    picture, header = read(path), read_header(path)
    assert (picture.depth, picture.channels, header.depth, header.channels) == (16, 3, 16, 3)
    # L* of 50 is a grey of 18.4 % of the light, 119 of 255 in sRGB.
    assert np.abs(picture.pixels.astype(int) - 119 * 257).max() < 257


def test_pillow_s_own_limit_of_pixels_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    image = Image.fromarray(NOISE)
    for content in (
        encode(image, "WEBP"),
        encode(image, "GIF"),
        encode(image.convert("YCbCr"), "TIFF"),  # which Pillow reads
    ):
        assert read(content).size == (64, 64)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that cannot be read at its beginning")
def test_a_drive_that_fails_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"/proc/self/mem: cannot be read: Input/output error"):
        read(Path("/proc/self/mem"))


@pytest.mark.parametrize("keyword", ["transparency", "default_image", "duration", "dpi", "bbox", "interlace"])
def test_a_text_of_a_png_may_be_called_as_pillow_calls_its_own(keyword: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(keyword, "a text")
    content = encode(Image.fromarray(corners()), "PNG", pnginfo=info)
    assert np.array_equal(read(content).pixels, corners())
    assert read(content).dpi is None
    assert read_header(content).channels == 3


@pytest.mark.parametrize("alpha", [0, 7])
def test_a_bitmap_whose_alpha_is_nowhere_set_is_opaque(alpha: int) -> None:
    pixels = np.concatenate([corners(), np.full((24, 40, 1), alpha, np.uint8)], axis=2)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 40, 24, 1, 32, 3, 0, 0, 0, 0, 0) + masks + bytes(108 - 40 - 16)
    rows = np.ascontiguousarray(pixels[::-1][..., [2, 1, 0, 3]]).tobytes()
    content = b"BM" + struct.pack("<IHHI", 14 + 108 + len(rows), 0, 0, 14 + 108) + header + rows
    picture = read(content)
    assert picture.channels == (4 if alpha else 3)
    assert np.array_equal(picture.colour, corners())


def lost(content: bytes) -> dict[str, bytes]:
    """JPEG files whose data has a hole."""
    half = len(content) // 2
    return {
        "zeros to the end": content[:half] + bytes(len(content) - half),
        "ended too soon": content[:half] + b"\xff\xd9",
    }


@pytest.mark.parametrize("how", list(lost(bytes(4))))
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_pixels_are_not_all_there_is_refused(tmp_path: Path, how: str, progressive: bool) -> None:
    """Pillow hands over grey or nonsense for them."""
    content = encode(Image.fromarray(NOISE), "JPEG", quality=92, progressive=progressive)
    assert read(content).size == (64, 64)
    for source in (lost(content)[how], write_file(tmp_path, "a.jpg", lost(content)[how])):
        with pytest.raises(InputError, match=r"is damaged: part of its pixels|cut short"):
            read(source)


def test_bytes_that_do_not_belong_there_are_no_damage_to_a_jpeg() -> None:
    content = encode(Image.fromarray(NOISE), "JPEG")
    expected = read(content).pixels
    assert np.array_equal(read(content[:-2] + b"\0\0\0" + content[-2:]).pixels, expected)  # before the end
    assert np.array_equal(read(content + bytes(500)).pixels, expected)  # behind it


def with_tag(content: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF file with another value of an entry, SHORT."""
    at = content.index(struct.pack("<HHI", tag, 3, 1), int.from_bytes(content[4:8], "little"))
    return content[: at + 8] + struct.pack("<HH", value, 0) + content[at + 12 :]


@pytest.mark.parametrize(
    ("photometric", "says"),
    [
        (9, "of a kind that cannot"),
        (5, "of a kind that cannot"),
        (10, "of a kind"),
        (32803, "sensor"),
        (34892, "sensor"),
    ],
)
def test_a_tiff_of_other_colours_is_refused_rather_than_read_as_rgb(photometric: int, says: str) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, NOISE, photometric="rgb")
    for ask in (read, read_header):
        with pytest.raises(InputError, match=says):
            ask(with_tag(buffer.getvalue(), 0x0106, photometric))


def test_whole_tiffs_of_rare_layouts_are_not_called_damaged() -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, NOISE.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", tile=(16, 16))
    with pytest.raises(InputError, match="of a kind that cannot be decoded here"):
        read(buffer.getvalue())
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, NOISE, photometric="rgb")  # as two by two pixels that share their colour would be marked
    with pytest.raises(InputError, match="of a kind that cannot be decoded here"):
        read(with_tag(buffer.getvalue(), 0x0106, 6))


@pytest.mark.parametrize("format", ["JPEG", "TIFF", "PNG"])
def test_the_resolution_turns_with_the_picture(format: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x011A], exif[0x011B], exif[0x0128] = 204.0, 98.0, 2
    content = encode(Image.fromarray(corners()), format, exif=exif.tobytes(), dpi=(204, 98))
    picture = read(content)
    assert picture.size == (40, 24)
    assert picture.dpi == (98, 204)
    if format != "TIFF":  # there the tags are the file's own
        assert metadata.resolution(picture.exif) == (98, 204)


@pytest.mark.parametrize("format", ["WEBP", "AVIF", "PNG"])
def test_a_resolution_that_only_exif_knows_is_carried(format: str) -> None:
    exif = Image.Exif()
    exif[0x011A], exif[0x011B], exif[0x0128] = 300.0, 150.0, 2
    assert read(encode(Image.fromarray(corners()), format, exif=exif.tobytes())).dpi == (300, 150)


def test_the_header_knows_how_a_png_lies_that_says_so_behind_its_pixels() -> None:
    plain = png(corners())
    content = plain[:-12] + chunk(b"eXIf", exif_block(6)[6:]) + plain[-12:]
    assert read(content).size == read_header(content).size == (40, 24)


def test_of_a_profile_what_lies_behind_it_is_left_out_and_one_cut_short_as_a_whole() -> None:
    for icc, expected in (
        (SRGB + b"\0\0", SRGB),
        (SRGB[:-4], None),
        (
            (len(SRGB) + 1).to_bytes(4, "big") + SRGB[4:] + b"x",
            (len(SRGB) + 4).to_bytes(4, "big") + SRGB[4:] + b"x\0\0\0",
        ),
    ):
        assert read(encode(Image.fromarray(corners()), "JPEG", icc_profile=icc)).icc == expected
