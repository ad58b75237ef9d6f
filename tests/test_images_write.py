"""A picture is written whole, in its own depth and colours, with all it carries; or not at all, and it says why."""

import contextlib
import errno
import io
import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms
from PIL import __version__ as PILLOW

from liif_cli.errors import OutputError, UsageError
from liif_cli.images import (
    Animation,
    Picture,
    check_output,
    format_of,
    metadata,
    open_writer,
    read,
    read_animation,
    stream,
    write,
    write_animation,
)
from liif_cli.images.stream import Stream

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a exif:PixelXDimension="7"/></x:xmpmeta>'
# Records of IPTC: marker, number of record and data set, length, content. Of odd length in all.
IPTC = b"\x1c\x02\x78\x00\x09A caption\x1c\x02\x50\x00\x06Author"
TEXTS = (("parameters", "a cat\nSteps: 20"), ("Author", "Zo\u00eb"), ("Title", "\u732b"))
RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# A grey profile: header and tags of the RGB one with another colour space are enough for carrying it.
GREY_PROFILE = RGB_PROFILE[:16] + b"GRAY" + RGB_PROFILE[20:]
HUGE = 1 << 40


def exif_block() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "A maker of cameras"
    exif[0x0112] = 1
    exif[0x8769] = {0x9003: "2020:01:01 00:00:00", 0xA002: 7, 0xA003: 5, 0x829A: (1, 125), 0x927C: b"note\0\1" * 9}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return exif.tobytes()


def picture(channels: int, dtype: Any = np.uint8, size: tuple[int, int] = (70, 90), **carried: Any) -> Picture:
    """A smooth picture, so that compression changes little, of values that use the whole depth."""
    greatest = np.iinfo(dtype).max
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    planes = [x / size[1], y / size[0], (x + y) / (size[0] + size[1])]
    alpha = ((x - 40) ** 2 + (y - 30) ** 2 < 900).astype(float)
    planes = planes[: 1 if channels <= 2 else 3] + ([alpha] if channels in (2, 4) else [])
    return Picture((np.stack(planes, axis=2) * greatest).astype(dtype), **carried)


def carrying(channels: int, dtype: Any = np.uint8) -> Picture:
    icc = GREY_PROFILE if channels <= 2 else RGB_PROFILE
    carried = {"exif": exif_block(), "xmp": XMP, "iptc": IPTC, "texts": TEXTS}
    return picture(channels, dtype, icc=icc, dpi=(300.0, 150.0), **carried)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_in_bands(path: Path, source: Picture, rows: int = 13, **options: Any) -> None:
    with open_writer(path, source.size, source, **options) as writer:
        for top in range(0, source.size[0], rows):
            band = source.pixels[top : top + rows].copy()
            writer.write(band)
            band[...] = 77  # bands may be reused at once


KEPT = [(".png", c, d) for c in (1, 2, 3, 4) for d in (np.uint8, np.uint16)]
KEPT += [(".tif", c, d) for c in (1, 2, 3, 4) for d in (np.uint8, np.uint16)]


@pytest.mark.parametrize("budget_bytes", [HUGE, 0], ids=["memory", "stream"])
@pytest.mark.parametrize(("extension", "channels", "dtype"), KEPT)
def test_lossless_formats_give_back_every_sample_and_all_metadata(
    tmp_path: Path, extension: str, channels: int, dtype: Any, budget_bytes: int
) -> None:
    source = carrying(channels, dtype)
    path = tmp_path / f"a{extension}"
    write_in_bands(path, source, budget_bytes=budget_bytes)
    assert names(tmp_path) == [path.name]
    again = read(path)
    assert again.pixels.dtype == dtype
    assert np.array_equal(again.pixels, source.pixels)
    assert_carried(again, source)
    with Image.open(path) if dtype == np.uint8 else contextlib.nullcontext() as image:
        if image is not None:
            image.load()


def assert_carried(again: Picture, source: Picture, dpi: bool = True) -> None:
    assert again.icc == source.icc
    assert again.xmp == XMP.replace(b'"7"', b'"90"')
    if dpi:
        assert again.dpi == source.dpi
    assert again.iptc == (IPTC if again.format in ("PNG", "JPEG", "TIFF") else None)
    assert again.texts == (TEXTS if again.format == "PNG" else ())
    assert again.exif is not None
    exif = Image.Exif()
    exif.load(again.exif)
    camera = exif.get_ifd(0x8769)
    assert exif[0x010F] == "A maker of cameras"
    # The size it states is the one it has now.
    assert (camera[0xA002], camera[0xA003]) == (90, 70)
    assert camera[0x9003] == "2020:01:01 00:00:00"
    assert float(camera[0x829A][0]) / float(camera[0x829A][1]) == 1 / 125
    assert camera[0x927C] == b"note\0\1" * 9
    assert exif.get_ifd(0x8825)[2] == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("budget_bytes", [HUGE, 0], ids=["memory", "stream"])
@pytest.mark.parametrize("extension", [".jpg", ".webp", ".avif"])
@pytest.mark.parametrize("channels", [3, 4, 1])
def test_lossy_formats_stay_close_and_keep_all_metadata(
    tmp_path: Path, extension: str, channels: int, budget_bytes: int
) -> None:
    if (extension == ".jpg" and channels == 4) or (extension != ".jpg" and (budget_bytes == 0 or channels == 1)):
        pytest.skip("this format does not hold that")
    source = carrying(channels)
    path = tmp_path / f"a{extension}"
    write_in_bands(path, source, budget_bytes=budget_bytes)
    again = read(path)
    visible = slice(None) if source.alpha is None else source.alpha > 0
    difference = np.abs(again.pixels[visible].astype(int) - source.pixels[visible].astype(int))
    assert difference.mean() < 1.5
    assert_carried(again, source, dpi=extension == ".jpg")


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of one directory, little-endian, by (tag, kind, count, content), written by hand."""
    at = 8 + 2 + 12 * len(entries) + 4
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, kind, count, content in entries:
        field = content.ljust(4, b"\0") if len(content) <= 4 else struct.pack("<I", at + len(values))
        values += content if len(content) > 4 else b""
        directory += struct.pack("<HHI", tag, kind, count) + field
    return b"Exif\0\0II*\0\x08\0\0\0" + directory + bytes(4) + values


@pytest.mark.parametrize("extension", [".jpg", ".webp", ".avif", ".png"])
def test_exif_that_pillow_would_damage_stays_byte_for_byte(tmp_path: Path, extension: str) -> None:
    artist, negative = "Jürgen Größe".encode() + b"\0", struct.pack("<ii", -7, 2)
    # A text that is not ASCII, the orientation, and a number below 0 of a type that has none.
    entries = [(0x013B, 2, len(artist), artist), (0x0112, 3, 1, b"\1\0"), (0x9201, 10, 1, negative)]
    source = picture(3, exif=exif_of(*sorted(entries)))
    path = tmp_path / f"a{extension}"
    write_in_bands(path, source, budget_bytes=HUGE)
    again = read(path)
    assert again.exif is not None
    if extension == ".avif":  # which turns pictures by a field of its own
        assert metadata.orientation(again.exif) == 1
        assert bytes.fromhex("1201") not in again.exif
        assert artist in again.exif
        assert negative in again.exif
        assert len(again.exif) == len(source.exif or b"")
    else:
        assert again.exif == source.exif


def test_a_moving_webp_has_exif_as_its_format_says(tmp_path: Path) -> None:
    source, path = moving(alpha=False), tmp_path / "a.webp"
    frames = tuple(replace(frame, exif=exif_of((0x0112, 3, 1, b"\1\0"))) for frame in source.frames)
    write_animation(path, replace(source, frames=frames))
    content = path.read_bytes()
    assert content[content.index(b"EXIF") + 8 :].startswith(b"II*\0")


def test_a_tiff_takes_no_layout_out_of_exif(tmp_path: Path) -> None:
    """Programs copy all tags of a TIFF into a JPEG file's EXIF: those of tiles and samples too."""
    layout = {0x00FE: 1, 0x0142: 16, 0x0143: 16, 0x0144: 8, 0x0145: 8, 0x0152: 2}
    foreign = [(0x010F, 2, 4, b"abc\0"), *((tag, 4, 1, struct.pack("<I", value)) for tag, value in layout.items())]
    source = picture(3, exif=exif_of(*sorted(foreign)))
    path = tmp_path / "a.tif"
    write_in_bands(path, source, budget_bytes=HUGE)
    again = read(path)
    assert np.array_equal(again.pixels, source.pixels)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), source.pixels)
        assert image.tag_v2[0x010F] == "abc"
        assert not set(layout) & set(image.tag_v2)


@pytest.mark.parametrize("budget_bytes", [HUGE, 0], ids=["memory", "stream"])
@pytest.mark.parametrize("extension", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("icc", [None, RGB_PROFILE], ids=["plain", "profile"])
def test_no_resolution_is_made_up(tmp_path: Path, extension: str, icc: bytes | None, budget_bytes: int) -> None:
    path = tmp_path / f"a{extension}"
    for dtype in (np.uint8, np.uint16) if extension == ".png" else (np.uint8,):
        source = picture(3, dtype, icc=icc)
        write_in_bands(path, source, budget_bytes=budget_bytes, overwrite=True)
        with Image.open(path) as image:
            assert image.info.get("dpi", (1, 1)) == (1, 1)  # as Pillow has it of TIFFs that state none
        again = read(path)
        assert again.dpi is None
        assert again.icc == icc
        assert extension == ".jpg" or np.array_equal(again.pixels, source.pixels)
        stated = replace(source, dpi=(72.0, 72.0))
        write_in_bands(path, stated, budget_bytes=budget_bytes, overwrite=True)
        assert read(path).dpi == (72.0, 72.0)


@pytest.mark.parametrize("extension", [".gif", ".bmp"])
def test_formats_without_profiles_hold_srgb(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    source = carrying(3)
    write(path, source.pixels, source)
    assert np.abs(read(path).pixels.astype(int) - source.pixels.astype(int)).mean() < 5


def test_gif_keeps_holes(tmp_path: Path) -> None:
    source = picture(4)
    write(tmp_path / "a.gif", source.pixels, source)
    again = read(tmp_path / "a.gif")
    assert np.array_equal(again.alpha, source.alpha)


def test_jpeg_has_full_colour_resolution_and_listens_to_quality(tmp_path: Path) -> None:
    source = picture(3)
    sizes = []
    for budget_bytes in (HUGE, 0):
        for quality in (None, 30):
            path = tmp_path / "a.jpg"
            write_in_bands(path, source, budget_bytes=budget_bytes, quality=quality, overwrite=True)
            sizes.append(path.stat().st_size)
            with Image.open(path) as image:
                assert all(layer[1:3] == (1, 1) for layer in image.layer)  # type: ignore[attr-defined]
    assert sizes[1] < sizes[0]
    assert sizes[3] < sizes[2]
    with pytest.raises(UsageError, match="101"):
        write(tmp_path / "b.jpg", source.pixels, source, quality=101)


@pytest.mark.parametrize("budget_bytes", [HUGE, 0], ids=["memory", "stream"])
@pytest.mark.parametrize("extension", [".png", ".jpg", ".tif"])
def test_strip_drops_metadata_but_not_the_profile(tmp_path: Path, extension: str, budget_bytes: int) -> None:
    write_in_bands(tmp_path / f"a{extension}", carrying(3), budget_bytes=budget_bytes, strip=True)
    again = read(tmp_path / f"a{extension}")
    assert again.icc == RGB_PROFILE
    assert again.exif is None
    assert (again.xmp, again.iptc, again.texts) == (None, None, ())
    written = (tmp_path / f"a{extension}").read_bytes()
    assert not any(words in written for words in (b"A maker", b"8BIM", b"Steps", b"Raw profile"))


@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (1, np.uint8), (4, np.uint8), (3, np.uint16)])
def test_a_deep_zoom_picture_is_a_pyramid_of_tiles(tmp_path: Path, channels: int, dtype: Any) -> None:
    source = picture(channels, dtype, size=(300, 520))
    write_in_bands(tmp_path / "a.b.dzi", source, budget_bytes=HUGE)
    assert names(tmp_path) == ["a.b.dzi", "a.b_files"]
    assert b'Width="520"' in (tmp_path / "a.b.dzi").read_bytes()
    assert not list(tmp_path.rglob("*.xml"))  # nothing but the tiles
    levels = sorted(int(folder.name) for folder in (tmp_path / "a.b_files").iterdir() if folder.is_dir())
    assert levels == list(range(11))
    opaque = channels in (1, 3) and dtype == np.uint8
    tiles = list((tmp_path / "a.b_files" / "10").iterdir())
    assert len(tiles) == 2 * 3
    assert {tile.suffix for tile in tiles} == {".jpg" if opaque else ".png"}
    first = read(tmp_path / "a.b_files" / "10" / f"0_0{tiles[0].suffix}")
    assert np.abs(first.pixels[:200, :200].astype(float) - source.pixels[:200, :200]).mean() < 2 * source.depth


@pytest.mark.parametrize("name", ["map[1]", "map.zip", "map[Q=5]"])
def test_a_deep_zoom_picture_has_the_name_it_is_given(tmp_path: Path, name: str) -> None:
    """libvips would read the ends of these as options, and as the kind of an archive."""
    write_in_bands(tmp_path / f"{name}.dzi", picture(3), budget_bytes=HUGE)
    assert names(tmp_path) == [f"{name}.dzi", f"{name}_files"]


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_a_stream_that_is_read_to_its_last_row_may_end_before_its_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    put = Stream._put

    def late(self: Stream, piece: bytes | None) -> None:
        if piece is None or b"IEND" in piece:
            self._thread.join(1)
        put(self, piece)

    monkeypatch.setattr(Stream, "_put", late)
    source = picture(3)
    write_in_bands(tmp_path / f"a{extension}", source, budget_bytes=0)
    assert np.array_equal(read(tmp_path / f"a{extension}").pixels, source.pixels)


def test_a_deep_zoom_picture_replaces_an_older_one_only_when_told(tmp_path: Path) -> None:
    for size in ((300, 520), (20, 30)):
        source = picture(3, size=size)
        write_in_bands(tmp_path / "a.dzi", source, budget_bytes=HUGE, overwrite=True)
    assert not (tmp_path / "a_files" / "10").exists()
    with pytest.raises(OutputError, match="--overwrite"):
        write_in_bands(tmp_path / "a.dzi", source, budget_bytes=HUGE)
    (tmp_path / "a.dzi").unlink()
    with pytest.raises(OutputError, match=r"a_files.*--overwrite"):
        write_in_bands(tmp_path / "a.dzi", source, budget_bytes=HUGE)
    assert names(tmp_path) == ["a_files"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interruption_leaves_a_deep_zoom_picture_as_it_was_or_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    old, new = picture(3, size=(300, 520)), picture(3, size=(20, 30))
    write_in_bands(tmp_path / "a.dzi", old, budget_bytes=HUGE)

    def content() -> dict[str, bytes]:
        files = (path for path in tmp_path.rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in files}

    before, move = content(), stream.move_into_place

    def interrupted(*arguments: Any, **options: Any) -> None:
        if when == "after":
            move(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "move_into_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_in_bands(tmp_path / "a.dzi", new, budget_bytes=HUGE, overwrite=True)
    assert (content() == before) == (when == "before")
    assert names(tmp_path) == ["a.dzi", "a_files"]
    assert (tmp_path / "a_files" / "10").exists() == (when == "before")


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    """As a browser's saved page has one."""
    (tmp_path / "a_files").mkdir()
    (tmp_path / "a_files" / "style.css").write_text("")
    (tmp_path / "trip_files" / "2021").mkdir(parents=True)
    (tmp_path / "trip_files" / "2021" / "mine.jpg").write_text("")
    (tmp_path / "plain_files").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for name in ("a", "trip", "plain"):
        with pytest.raises(OutputError, match="another name"):
            write_in_bands(tmp_path / f"{name}.dzi", picture(3), budget_bytes=HUGE, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_tiles_that_cannot_be_put_back_are_left_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_in_bands(tmp_path / "a.dzi", picture(3, size=(300, 520)), budget_bytes=HUGE)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == tmp_path / "a_files":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError):
        write_in_bands(tmp_path / "a.dzi", picture(3, size=(20, 30)), budget_bytes=HUGE, overwrite=True)
    assert len(list(tmp_path.rglob("10/*"))) == 6  # the older picture's largest level


def test_a_disk_that_does_not_tell_how_much_is_free_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(path: Path) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("shutil.disk_usage", unknown)
    write_in_bands(tmp_path / "a.png", picture(3), budget_bytes=HUGE)
    assert (tmp_path / "a.png").exists()


def test_a_large_tiff_is_a_tiled_pyramid_that_keeps_its_exif(tmp_path: Path) -> None:
    source = carrying(1)
    tall = Picture(np.tile(source.pixels, (120, 1, 1)), exif=source.exif)
    write_in_bands(tmp_path / "a.tif", tall, rows=700, budget_bytes=0)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].is_tiled
        assert len(file.pages[0].pages) >= 4  # the smaller copies
    again = read(tmp_path / "a.tif")
    assert np.array_equal(again.pixels, tall.pixels)
    assert again.exif is not None
    assert b"A maker of cameras" in again.exif


def test_exif_goes_into_big_tiff_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liif_cli.images.stream._BIG_BYTES", 0)
    source = carrying(3)
    write_in_bands(tmp_path / "a.tif", source, budget_bytes=0)
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\0"
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].tags["Make"].value == "A maker of cameras"
        assert file.pages[0].tags["ExifTag"].value["PixelXDimension"] == 90
    again = read(tmp_path / "a.tif")
    assert np.array_equal(again.pixels, source.pixels)
    assert_carried(again, source)


EXTENSIONS = [".png", ".jpg", ".tif", ".dzi", ".webp"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("budget_bytes", [HUGE, 0], ids=["memory", "stream"])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_failure_between_bands_leaves_nothing_behind(
    tmp_path: Path, extension: str, budget_bytes: int, failure: type[BaseException]
) -> None:
    if extension == ".webp" and budget_bytes == 0:
        pytest.skip("WebP does not stream")
    source = picture(3)

    def paint() -> None:
        with open_writer(tmp_path / f"a{extension}", source.size, source, budget_bytes=budget_bytes) as writer:
            writer.write(source.pixels[:30])
            raise failure

    with pytest.raises(failure):
        paint()
    assert names(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "liif-writer"]


@pytest.mark.parametrize("budget_bytes", [HUGE, 0], ids=["memory", "stream"])
@pytest.mark.parametrize("extension", [".png", ".tif", ".dzi"])
def test_missing_and_surplus_rows_are_bugs_that_leave_nothing(
    tmp_path: Path, extension: str, budget_bytes: int
) -> None:
    source = picture(3)
    with pytest.raises(ValueError, match="30 of 70"):
        write_rows(tmp_path / f"a{extension}", source, source.pixels[:30], budget_bytes)
    with pytest.raises(ValueError, match="140 rows"):
        write_rows(tmp_path / f"a{extension}", source, np.tile(source.pixels, (2, 1, 1)), budget_bytes)
    with pytest.raises(ValueError, match="uint16"):
        write_rows(tmp_path / f"a{extension}", source, source.pixels.astype(np.uint16), budget_bytes)
    assert names(tmp_path) == []


def write_rows(path: Path, source: Picture, rows: np.ndarray, budget_bytes: int) -> None:
    with open_writer(path, source.size, source, budget_bytes=budget_bytes) as writer:
        writer.write(rows)


@pytest.mark.parametrize("budget_bytes", [HUGE, 0], ids=["memory", "stream"])
@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_a_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str, budget_bytes: int
) -> None:
    original = Path.open

    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_full(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        return Full() if self.suffix == ".part" else original(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", open_full)
    source = picture(3)
    with pytest.raises(OutputError, match="disk is full") as caught:
        write_in_bands(tmp_path / f"a{extension}", source, budget_bytes=budget_bytes)
    assert str(tmp_path / f"a{extension}") in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full and a file size limit")
@pytest.mark.parametrize("extension", [".tif", ".png", ".dzi"])
def test_a_real_limit_of_the_system_is_an_error_and_leaves_nothing(tmp_path: Path, extension: str) -> None:
    code = f"""
        import resource, signal, numpy as np
        from pathlib import Path
        from liif_cli.images import Picture, open_writer
        from liif_cli.errors import OutputError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
        like = Picture(pixels)
        try:
            with open_writer(Path({str(tmp_path / "a")!r} + {extension!r}), (400, 600), like, budget_bytes=0) as writer:
                for top in range(0, 400, 20):
                    writer.write(pixels[top : top + 20])
        except OutputError as error:
            print("OutputError", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith("OutputError"), done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child alone")
@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_ctrl_c_stops_a_stream_at_once_and_leaves_nothing(tmp_path: Path, extension: str) -> None:
    code = f"""
        import time, numpy as np
        from pathlib import Path
        from liif_cli.images import Picture, open_writer
        band = np.zeros((16, 3000, 3), np.uint8)
        path = Path({str(tmp_path / "a")!r} + {extension!r})
        with open_writer(path, (16 * 10_000, 3000), Picture(band), budget_bytes=0) as writer:
            print("ready", flush=True)
            for _ in range(10_000):
                writer.write(band)
                time.sleep(0.01)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=20)
    finally:
        child.kill()
    assert error.rstrip().endswith(b"KeyboardInterrupt")
    assert names(tmp_path) == []


def test_a_stream_s_memory_does_not_grow_with_the_picture(tmp_path: Path) -> None:
    import psutil

    process, width, band = psutil.Process(), 4000, np.zeros((100, 4000, 3), np.uint8)
    write(tmp_path / "warm.png", band, Picture(band), budget_bytes=0)
    before, peak = process.memory_info().rss, 0
    with open_writer(tmp_path / "a.png", (5000, width), Picture(band), budget_bytes=0) as writer:
        for _ in range(50):
            writer.write(band)
            peak = max(peak, process.memory_info().rss)
    assert peak - before < 40e6  # the picture has 60 MB


@pytest.mark.parametrize(
    ("name", "size", "channels", "dtype", "error", "words"),
    [
        ("a.xyz", (9, 9), 3, np.uint8, UsageError, "xyz.*png"),
        ("a", (9, 9), 3, np.uint8, UsageError, "no extension"),
        ("a.heic", (9, 9), 3, np.uint8, UsageError, "HEIC.*avif"),
        ("a.jpg", (9, 65_501), 3, np.uint8, OutputError, "65,500.*png"),
        ("a.webp", (16_384, 9), 3, np.uint8, OutputError, "16,383"),
        ("a.gif", (65_536, 9), 3, np.uint8, OutputError, "65,535"),
        ("a.avif", (32_769, 9), 3, np.uint8, OutputError, "32,768"),
        ("a.bmp", (60_000, 60_000), 3, np.uint8, OutputError, "million pixels"),
        ("a.jpg", (9, 9), 4, np.uint8, OutputError, "transparency.*png"),
        ("a.bmp", (9, 9), 2, np.uint8, OutputError, "transparency"),
        ("a.jpg", (9, 9), 3, np.uint16, OutputError, "16 bits.*png.*tif"),
        ("a.webp", (9, 9), 3, np.uint16, OutputError, "16 bits"),
        ("a.avif", (9, 9), 1, np.uint16, OutputError, "16 bits"),
        ("a.png", (9, 9), 3, np.float32, OutputError, "floating"),
        ("a.png", (0, 9), 3, np.uint8, OutputError, "no pixels"),
        ("a.png", (1 << 30, 1 << 30), 3, np.uint8, OutputError, "GB are needed"),
        ("a.webp", (9_000, 9_000), 3, np.uint8, OutputError, "memory.*png"),
        ("missing/a.png", (9, 9), 3, np.uint8, OutputError, "does not exist"),
        ("there.png", (9, 9), 3, np.uint8, OutputError, "--overwrite"),
    ],
)
def test_what_cannot_be_written_is_said_before_any_work(
    tmp_path: Path, name: str, size: tuple[int, int], channels: int, dtype: Any, error: type[Exception], words: str
) -> None:
    (tmp_path / "there.png").touch()
    like = Picture(np.zeros((4, 4, channels), dtype))
    with pytest.raises(error, match=words) as caught:
        check_output(tmp_path / name, size, like, budget_bytes=1 << 28)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_partial_transparency_is_not_for_gif(tmp_path: Path) -> None:
    soft = Picture(np.full((4, 4, 4), 100, np.uint8))
    with pytest.raises(OutputError, match="partial"):
        check_output(tmp_path / "a.gif", (4, 4), soft)


def test_metadata_too_long_for_jpeg_is_said(tmp_path: Path) -> None:
    like = picture(3, xmp=b"x" * 70_000)
    with pytest.raises(OutputError, match="--strip"):
        check_output(tmp_path / "a.jpg", (4, 4), like)
    check_output(tmp_path / "a.jpg", (4, 4), like, strip=True)
    check_output(tmp_path / "a.png", (4, 4), like)
    with pytest.raises(OutputError, match=r"bytes of IPTC; add --strip"):
        check_output(tmp_path / "a.jpg", (4, 4), picture(3, iptc=b"\x1c" * 65_510))


def test_what_the_limits_allow_can_be_written(tmp_path: Path) -> None:
    for name, side in (("a.jpg", 65_500), ("a.webp", 16_383), ("a.gif", 65_535), ("a.avif", 32_768), ("a.png", 80_000)):
        for budget_bytes in (HUGE, 0) if name in ("a.jpg", "a.png") else (HUGE,):
            long = np.zeros((2, side, 3), np.uint8)
            write(tmp_path / name, long, Picture(long), budget_bytes=budget_bytes, overwrite=True)
            assert read(tmp_path / name).size == (2, side)


@pytest.mark.parametrize(
    ("path", "name", "format"),
    [("a.PNG", None, "PNG"), ("a.jpeg", None, "JPEG"), ("a", "tif", "TIFF"), ("a.png", ".webp", "WebP"),
     ("a", "DZI", "DeepZoom")],
)  # fmt: skip
def test_formats_go_by_name_or_extension(path: str, name: str | None, format: str) -> None:
    assert format_of(Path(path), name).name == format


def test_an_existing_picture_survives_a_failure(tmp_path: Path) -> None:
    source = picture(3)
    write(tmp_path / "a.png", source.pixels, source)
    before = (tmp_path / "a.png").read_bytes()
    with (
        pytest.raises(ValueError, match="rows"),
        open_writer(tmp_path / "a.png", source.size, source, budget_bytes=0, overwrite=True),
    ):
        pass
    assert (tmp_path / "a.png").read_bytes() == before


def test_formats_that_cannot_hold_the_size_either_are_not_advised(tmp_path: Path) -> None:
    for name, size in (("a.jpg", (70_000, 70_000)), ("a.avif", (30_000, 60_000)), ("a.bmp", (70_000, 70_000))):
        with pytest.raises(OutputError, match="use") as raised:
            check_output(tmp_path / name, size, Picture(np.broadcast_to(np.uint8(0), (*size, 3))))
        assert "bmp" not in str(raised.value).partition("use")[2]
        assert ".png" in str(raised.value).partition("use")[2]


@pytest.mark.parametrize("frames", [1, 2])
def test_what_libavif_says_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("Failed to encode image: Encoding of color planes failed")

    monkeypatch.setattr(Image.Image, "save", fail)
    source, path = moving(alpha=False), tmp_path / "a.avif"
    still = source.frames[0]
    with pytest.raises(OutputError, match="Encoding of color planes failed"):
        write(path, still.pixels, still) if frames == 1 else write_animation(path, source)
    assert list(tmp_path.iterdir()) == []


def moving(alpha: bool) -> Animation:
    frames = []
    for step in range(4):
        pixels = np.zeros((20, 30, 4 if alpha else 3), np.uint8)
        pixels[..., :3] = (20, 40, 60)
        pixels[5:15, step * 5 : step * 5 + 10] = (200, 100, 50, 255)[: pixels.shape[2]]
        frames.append(Picture(pixels, format="GIF"))
    return Animation(tuple(frames), (40, 80, 120, 160), 0, "GIF")


@pytest.mark.parametrize("extension", [".gif", ".webp", ".png", ".apng", ".avif"])
@pytest.mark.parametrize("alpha", [False, True])
def test_animations_go_in_and_out(tmp_path: Path, extension: str, alpha: bool) -> None:
    source = moving(alpha)
    path = tmp_path / f"a{extension}"
    write_animation(path, source)
    again = read_animation(path)
    assert again is not None
    assert again.durations_ms == source.durations_ms
    assert again.plays == 0
    assert len(again.frames) == 4
    for one, other in zip(again.frames, source.frames, strict=True):
        assert one.pixels.shape == other.pixels.shape
        if alpha:
            assert np.abs(one.alpha.astype(int) - other.alpha).max() < (8 if extension == ".avif" else 1)
        visible = other.alpha > 0 if other.alpha is not None else slice(None)
        assert np.abs(one.pixels[visible].astype(int) - other.pixels[visible].astype(int)).max() < 8
    assert np.abs(read(path).pixels[..., 0].astype(int) - again.frames[0].pixels[..., 0]).mean() < 8


@pytest.mark.parametrize(
    ("extension", "durations", "again"),
    [
        (".webp", (16, 17, 16, 100), (16, 17, 16, 100)),
        (".png", (16, 17, 16, 100), (16, 17, 16, 100)),
        (".gif", (33, 33, 34, 100), (30, 40, 30, 100)),  # hundredths of a second, and the whole takes as long
        (".gif", (16, 17, 16, 100), (20, 20, 20, 100)),  # browsers make ten times as long of the next shorter
        (".png", (0, 10, 20, 100), (100, 100, 20, 100)),  # as browsers show them
    ],
)
def test_short_frames_stay_short(tmp_path: Path, extension: str, durations: tuple, again: tuple) -> None:
    write_animation(tmp_path / f"a{extension}", replace(moving(alpha=False), durations_ms=durations))
    assert read_animation(tmp_path / f"a{extension}").durations_ms == again


@pytest.mark.skipif(tuple(map(int, PILLOW.split(".")[:2])) < (12, 1), reason="Pillow before 12.1 cannot")
def test_long_frames_of_a_moving_png_are_as_long_as_it_can_say(tmp_path: Path) -> None:
    """As a quotient of two numbers of 16 bits."""
    source = replace(moving(alpha=False), durations_ms=(70_001, 20, 700_000, 10**8))
    write_animation(tmp_path / "a.png", source)
    again = read_animation(tmp_path / "a.png")
    assert again is not None
    assert again.durations_ms == (70_000, 20, 700_000, 65_535_000)


def test_black_next_to_holes_stays_in_an_animated_gif(tmp_path: Path) -> None:
    """An outline: frames are stored as what differs from a cleared canvas."""
    frames = []
    for step in range(4):
        pixels = np.zeros((20, 30, 4), np.uint8)
        pixels[2:18, 2:28, 3] = 255
        pixels[6:14, 6 + step : 12 + step] = (200, 50 * step, 90, 255)
        if step == 3:
            pixels[3:17, 3:27, 3] = 0  # differs from the one before in holes where black was
            pixels[6:14, 6 + step : 12 + step, 3] = 255
        frames.append(Picture(pixels, format="GIF"))
    write_animation(tmp_path / "a.gif", Animation(tuple(frames), (40,) * 4, 0, "GIF"))
    again = read_animation(tmp_path / "a.gif")
    assert len(again.frames) == 4
    for one, other in zip(again.frames, frames, strict=True):
        assert np.array_equal(one.alpha, other.alpha)
        assert np.abs(one.pixels.astype(int) - other.pixels)[other.alpha > 0].max() < 8


@pytest.mark.parametrize("empty", [(0,), (1,), (3,), (0, 1), (1, 2), (0, 1, 2, 3)])
def test_an_animated_gif_with_empty_frames_is_one_file(tmp_path: Path, empty: tuple[int, ...]) -> None:
    frames = list(moving(alpha=True).frames)
    for index in empty:
        frames[index] = replace(frames[index], pixels=np.zeros_like(frames[index].pixels))
    write_animation(tmp_path / "a.gif", Animation(tuple(frames), (40, 80, 120, 160), 0, "GIF"))
    content = (tmp_path / "a.gif").read_bytes()
    assert content.count(b"GIF89a") == 1
    again = pyvips.Image.new_from_buffer(content, "", n=-1)  # which stops where browsers stop
    whole = again.numpy().reshape(again.height // 20, 20, 30, -1)
    # Frames that look alike are one, or two.
    read_back, written = (
        [key for key, _ in itertools.groupby(map(np.ndarray.tobytes, alphas))]
        for alphas in ([page[..., 3] for page in whole], [frame.alpha for frame in frames])
    )
    assert read_back == written


def test_what_is_hidden_takes_no_colours_of_a_gif(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    pixels[:8, :16, 3] = 255
    write(tmp_path / "a.gif", pixels, Picture(pixels))
    again = read(tmp_path / "a.gif").pixels
    assert np.abs(again[:8, :16].astype(int) - pixels[:8, :16]).mean() < 1  # 128 colours of 255, and some dithering


def test_a_moving_png_keeps_what_is_said_of_it_with_its_new_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0100], exif[0x010E] = 5, "a square"
    said = {"exif": exif.tobytes(), "xmp": b'<x tiff:ImageWidth="5" dc:title="square"/>', "texts": (("Title", "x"),)}
    source = moving(alpha=False)
    write_animation(tmp_path / "a.png", replace(source, frames=tuple(replace(f, **said) for f in source.frames)))
    with Image.open(tmp_path / "a.png") as image:
        assert image.n_frames == 4
        assert (image.getexif()[0x0100], image.getexif()[0x010E]) == (30, "a square")
        assert image.info["xmp"] == b'<x tiff:ImageWidth="30" dc:title="square"/>'
        assert image.info["Title"] == "x"
    again = read_animation(tmp_path / "a.png")
    assert again is not None
    assert again.frames[0].texts == (("Title", "x"),)
    write_animation(tmp_path / "b.png", again, strip=True)
    with Image.open(tmp_path / "b.png") as image:
        assert not {"xmp", "exif", "Title"} & image.info.keys()


def test_an_animated_gif_which_holds_no_profile_gets_the_colours_that_it_means(tmp_path: Path) -> None:
    exchanged = RGB_PROFILE.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    source = moving(alpha=False)
    frames = tuple(replace(frame, icc=exchanged) for frame in source.frames)
    write_animation(tmp_path / "a.gif", replace(source, frames=frames))
    again = read_animation(tmp_path / "a.gif")
    assert again is not None
    assert np.abs(again.frames[0].pixels[10, 5].astype(int) - (50, 100, 200)).max() < 16


@pytest.mark.parametrize("plays", [0, 1, 2, 5])
@pytest.mark.parametrize("extension", [".gif", ".webp", ".png"])
def test_an_animation_plays_as_often_in_every_format(tmp_path: Path, extension: str, plays: int) -> None:
    write_animation(tmp_path / f"a{extension}", replace(moving(alpha=False), plays=plays))
    again = read_animation(tmp_path / f"a{extension}")
    assert again is not None
    assert again.plays == plays
    with Image.open(tmp_path / f"a{extension}") as image:
        # A GIF says how often it begins anew; the others how often they play.
        expected = plays if extension != ".gif" or plays == 0 else plays - 1 or None
        assert image.info.get("loop") == expected


def test_an_animation_longer_than_gif_can_say(tmp_path: Path) -> None:
    long = replace(moving(alpha=False), durations_ms=(40, 80, 10**6, 160), plays=10**6)
    write_animation(tmp_path / "a.gif", long)
    again = read_animation(tmp_path / "a.gif")
    assert again is not None
    assert again.durations_ms == (40, 80, 655_350, 160)
    assert again.plays == 65_536
    alike = replace(long, frames=(long.frames[0],) * 4)  # which are shown as one
    with pytest.raises(OutputError, match=r"b.gif: .*655 seconds are the most that GIF shows a frame; use .webp"):
        write_animation(tmp_path / "b.gif", alike)
    assert names(tmp_path) == ["a.gif"]


@pytest.mark.parametrize("mode", ["I;16", "LA", "L"])
def test_animations_in_grey_become_colour_of_eight_bits(tmp_path: Path, mode: str) -> None:
    grey = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype(np.uint8)
    if mode == "I;16":
        frames = [Image.fromarray(shade.astype(np.uint16) * 257) for shade in (grey, 255 - grey)]
    else:
        frames = [Image.fromarray(shade).convert(mode) for shade in (grey, 255 - grey)]
    dark = GREY_PROFILE if mode != "I;16" else None
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=100, icc_profile=dark)
    again = read_animation(tmp_path / "a.png")
    assert again is not None
    for frame, shade in zip(again.frames, (grey, 255 - grey), strict=True):
        assert (frame.pixels.dtype, frame.pixels.shape, frame.icc) == (np.uint8, (20, 30, 3), None)
        assert np.abs(frame.pixels.astype(int) - shade[..., None]).max() < 40  # whatever the profile's curve is
    write_animation(tmp_path / "b.gif", again)


def test_a_single_picture_is_no_animation(tmp_path: Path) -> None:
    source = picture(3)
    for extension in (".png", ".gif", ".webp", ".jpg"):
        write(tmp_path / f"a{extension}", source.pixels, source)
        assert read_animation(tmp_path / f"a{extension}") is None


def test_formats_that_do_not_move_say_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="animation"):
        write_animation(tmp_path / "a.jpg", moving(False))


def test_frames_drawn_over_one_another_are_whole(tmp_path: Path) -> None:
    """A GIF whose second frame is a small patch: the canvas around it stays."""
    first = Image.new("RGB", (20, 20), (255, 0, 0)).quantize(4)
    second = Image.new("RGB", (20, 20), (255, 0, 0))
    second.paste((0, 0, 255), (5, 5, 9, 9))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second], duration=50)
    animation = read_animation(tmp_path / "a.gif")
    assert animation is not None
    assert animation.plays == 1
    assert tuple(animation.frames[1].pixels[0, 0, :3]) == (255, 0, 0)
    assert tuple(animation.frames[1].pixels[6, 6, :3]) == (0, 0, 255)


def test_no_space_is_found_out_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match="free some space"):
        check_output(tmp_path / "a.png", (1000, 1000), picture(3))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500_000))
    check_output(tmp_path / "a.dzi", (1000, 1000), picture(3))
    for solid in (picture(4), picture(3, np.uint16)):  # whose tiles are PNG files
        with pytest.raises(OutputError, match="free some space"):
            check_output(tmp_path / "a.dzi", (1000, 1000), solid)


@pytest.mark.parametrize(
    ("name", "lossless"), [("a.gif", False), ("a.webp", False), ("a.webp", True), ("a.bmp", False)]
)
def test_what_encoding_from_memory_takes_is_no_more_than_planned(tmp_path: Path, name: str, lossless: bool) -> None:
    """The peak of a process of its own, which encodes noise: what is the hardest."""
    if sys.platform != "linux":
        pytest.skip("the peak is read as Linux tells it")
    code = f"""
import re
from pathlib import Path
import numpy as np
from liif_cli.images import Picture, write, writer_bytes, format_of
pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
like = Picture(pixels, format="WEBP", lossless={lossless})
write(Path({str(tmp_path / name)!r}), pixels, like, overwrite=True)
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(peak, writer_bytes(format_of(Path({name!r})), (SIDE, SIDE), like, 1 << 40))
"""
    (small, _), (large, planned) = (
        map(int, subprocess.check_output([sys.executable, "-c", code.replace("SIDE", str(side))]).split())
        for side in (16, 900)
    )
    assert large - small <= planned + 900 * 900 * 3 + 2**22  # the source's own pixels, too


def pages(many: bool) -> np.ndarray:
    """White with letters' shades on it; with ``many`` a colourful square, too."""
    pixels = np.full((80, 100, 3), 255, np.uint8)
    pixels[10:20, 10:70] = np.linspace(0, 255, 60).astype(np.uint8)[None, :, None]
    pixels[60:70, :40] = (30, 60, 90)
    if many:
        pixels[30:60, 50:90] = np.random.default_rng(0).integers(0, 256, (30, 40, 3))
    return pixels


def test_a_gif_of_few_colours_is_exact(tmp_path: Path) -> None:
    for pixels in (pages(False), np.arange(256, dtype=np.uint8).reshape(16, 16, 1)):
        write(tmp_path / "a.gif", pixels, Picture(pixels), overwrite=True)
        with Image.open(tmp_path / "a.gif") as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def test_in_a_gif_of_many_colours_areas_of_one_keep_it(tmp_path: Path) -> None:
    pixels = pages(True)
    alike = (pixels == 255).all(axis=2) | (pixels == (30, 60, 90)).all(axis=2)
    frames = tuple(Picture(np.roll(pixels, shift, axis=1)) for shift in (0, 9))
    write_animation(tmp_path / "a.gif", Animation(frames, (100, 100), 0, "GIF"))
    with Image.open(tmp_path / "a.gif") as image:
        for number, shift in enumerate((0, 9)):
            image.seek(number)
            shown = np.roll(np.asarray(image.convert("RGB")), -shift, axis=1)
            assert np.array_equal(shown[alike], pixels[alike])
            assert np.abs(shown.astype(int) - pixels).mean() < 6


@pytest.mark.parametrize("name", ["a.png", "a.dzi"])
def test_a_profile_that_libpng_refuses_costs_no_picture(tmp_path: Path, name: str) -> None:
    source = picture(4, icc=RGB_PROFILE + b"\0\0")
    write_in_bands(tmp_path / name, source, budget_bytes=0)
    assert (tmp_path / name).exists()


def test_tiles_that_are_not_whole_are_an_error_and_the_old_picture_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As libvips leaves them, without a word, where the disk has no room for a small file."""
    source = picture(3)
    write_in_bands(tmp_path / "a.dzi", source, budget_bytes=0)
    before = (tmp_path / "a.dzi").read_bytes()
    save = Stream._save

    def cut(self: Stream) -> None:
        save(self)
        tile = next(self._temporary.rglob("0_0.jpg"))
        tile.write_bytes(tile.read_bytes()[:-5])

    monkeypatch.setattr(Stream, "_save", cut)
    with pytest.raises(OutputError, match=r"a\.dzi: cannot be written: 0_0\.jpg is not whole; is the disk full\?"):
        write_in_bands(tmp_path / "a.dzi", source, budget_bytes=0, overwrite=True)
    assert (tmp_path / "a.dzi").read_bytes() == before
    assert names(tmp_path) == ["a.dzi", "a_files"]
