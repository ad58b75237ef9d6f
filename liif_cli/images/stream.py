"""Pictures larger than memory: bands go in at the top, libvips compresses them in a thread of its own.

libvips pulls; the engine pushes. So the bands become a PNG file without compression that is never whole: pieces of it
wait in a short queue, and libvips reads them as from a pipe. What it makes goes to the disk through a function of
ours for PNG and JPEG, where metadata is put in unaltered, and directly for TIFF and DeepZoom.

libvips swallows what a callback raises, and would call half a picture a success. So callbacks never raise: they keep
the error and end the stream, libvips fails because the picture is cut short, and the kept error is raised.
"""

import contextlib
import errno
import os
import queue
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from liif_cli.errors import OutputError
from liif_cli.files import cannot_write, check_target, flush_to_disk, move_into_place, temporary_beside
from liif_cli.images.bands import Bands
from liif_cli.images.formats import IPTC_HEADER, XMP_HEADER, check_tiles_folder, tiles_folder
from liif_cli.images.metadata import PREFIX, iptc_resource, png_texts
from liif_cli.images.picture import Array, Picture
from liif_cli.images.quiet import vips
from liif_cli.images.tiff import graft

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_PIECE_BYTES = 1 << 20
_PYRAMID = "picture"  # a DeepZoom's name until it has its own
_WAITING_PIECES = 8
_STORED_BYTES = 0xFFFF  # the longest block without compression

# TIFF: above this, tiles and smaller copies, so that viewers open it at once; above 2 GB, 64-bit offsets.
_PYRAMID_PX = 8192
_BIG_BYTES = 1 << 31


class Stream:
    """A writer whose bands are compressed while the next ones are painted, in memory that does not depend on the
    picture's height (`formats.writing_bytes`).

    A context manager: leaving the block without an error finishes the file at `temporary`, leaving it with one stops
    everything and leaves removal to the owner of `temporary`. Errors name `final`.
    """

    def __init__(
        self,
        temporary: Path,
        final: Path,
        format: str,
        size: tuple[int, int],
        carried: Picture,
        options: dict[str, Any],
    ) -> None:
        self._temporary, self._final, self._format = temporary, final, format
        self._carried, self._options = carried, options
        self._bands = Bands(size, carried)
        self._pieces: queue.Queue[bytes | None] = queue.Queue(_WAITING_PIECES)
        self._checksum = 1
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="liif-writer", daemon=True)

    def __enter__(self) -> "Stream":
        try:
            vips()
        except (ImportError, OSError) as error:
            raise OutputError(f"{self._final}: needs libvips; install it with: pip install 'pyvips[binary]'") from error
        self._thread.start()
        try:
            self._put_header()
        except BaseException:  # Ctrl-C just here: without a block there would be no exit
            self._stop()
            raise
        return self

    def _put_header(self) -> None:
        header = (self._bands.width, self._bands.height, self._bands.dtype.itemsize * 8)
        colour = _PNG_COLOUR_TYPES[self._bands.channels]
        self._put(_PNG_START + png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header, colour, 0, 0, 0)))
        self._put(png_chunk(b"IDAT", b"\x78\x01"))  # the start of a zlib stream

    def write(self, rows: Array) -> None:
        """Append rows; returns as soon as they wait in the queue. See `Writer.write`."""
        rows = self._bands.check(rows)
        row_bytes = 1 + self._bands.width * self._bands.channels * self._bands.dtype.itemsize
        step = max(1, _PIECE_BYTES // row_bytes)
        for top in range(0, rows.shape[0], step):
            part = rows[top : top + step]
            lines = np.empty((part.shape[0], row_bytes), np.uint8)
            lines[:, 0] = 0  # no filter
            in_order = part.astype(">u2") if part.dtype == np.uint16 else part
            lines[:, 1:] = in_order.reshape(part.shape[0], -1).view(np.uint8)
            self._put_stored(lines.tobytes())

    def _put_stored(self, raw: bytes) -> None:
        self._checksum = zlib.adler32(raw, self._checksum)
        view = memoryview(raw)
        parts: list[bytes | memoryview] = []
        for start in range(0, len(raw), _STORED_BYTES):
            block = view[start : start + _STORED_BYTES]
            parts += [struct.pack("<BHH", 0, len(block), len(block) ^ 0xFFFF), block]
        self._put(png_chunk(b"IDAT", b"".join(parts)))

    def _put(self, piece: bytes | None) -> None:
        while True:
            if not self._thread.is_alive():
                if self._error is None:
                    return  # it has all rows, and may not need how the file ends
                self._raise_failure()
            with contextlib.suppress(queue.Full):
                self._pieces.put(piece, timeout=0.2)
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._bands.check_complete()
                ending = struct.pack("<BHH", 1, 0, 0xFFFF) + struct.pack(">I", self._checksum)
                self._put(png_chunk(b"IDAT", ending) + png_chunk(b"IEND", b""))
                self._put(None)
                while self._thread.is_alive():  # in short steps, so that Ctrl-C is heard
                    self._thread.join(0.2)
                self._ended = True
        finally:
            if not self._ended:
                self._stop()
        if error is None and self._error is not None:
            self._raise_failure()

    def _stop(self) -> None:
        """End the stream where it is, and wait for the thread to notice."""
        self._ended = True
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                while True:
                    self._pieces.get_nowait()
            with contextlib.suppress(queue.Full):
                self._pieces.put_nowait(None)
            self._thread.join(0.05)

    def _raise_failure(self) -> None:
        error = self._error
        assert error is not None
        if isinstance(error, OutputError):
            raise error
        raise cannot_write(self._final, _system_error(error)) from error

    # From here on in the thread.

    def _run(self) -> None:
        try:
            self._save()
        except BaseException as error:
            # A first error in a callback is the cause, what libvips makes of it the consequence.
            self._error = self._error or error

    def _save(self) -> None:
        pyvips = vips()
        reader = _Pieces(self._pieces)
        source = pyvips.SourceCustom()
        source.on_read(reader.read)
        image = pyvips.Image.new_from_source(source, "", access="sequential", fail_on="truncated").copy()
        carried = self._carried
        if carried.icc is not None and self._takes_profile(carried.icc):
            image.set_type(pyvips.GValue.blob_type, "icc-profile-data", carried.icc)
        if carried.dpi is not None:
            image = image.copy(xres=carried.dpi[0] / 25.4, yres=carried.dpi[1] / 25.4)
        if self._format == "PNG":
            self._save_through(image.pngsave_target, png_metadata(carried))
        elif self._format == "JPEG":
            self._save_through(image.jpegsave_target, jpeg_metadata(carried))
        elif self._format == "TIFF":
            self._save_tiff(image)
        else:
            # Not under its own name, of which libvips would read the end as options, or as the name of an archive.
            image.dzsave(os.fsencode(self._temporary / _PYRAMID), keep="icc", **self._options)
            for description in self._temporary.rglob("vips-properties.xml"):  # libvips's own, of no use to a viewer
                description.unlink()

    def _takes_profile(self, icc: bytes) -> bool:
        """Whether libpng, which fails by what it finds wrong, writes a picture with this profile."""
        if self._format in ("JPEG", "TIFF"):
            return True
        pixel = vips().Image.black(1, 1, bands=self._bands.channels).copy()
        pixel.set_type(vips().GValue.blob_type, "icc-profile-data", icc)
        try:
            pixel.pngsave_buffer(keep="icc")
        except vips().Error:
            return False
        return True

    def _save_through(self, save: Any, inserted: "Inserted") -> None:
        with self._temporary.open("wb") as file:
            target = vips().TargetCustom()
            sink = _Sink(file, inserted)
            target.on_write(sink.write)
            try:
                # libvips would write EXIF of its own making beside ours.
                save(target, keep="icc", **self._options)
            finally:
                self._error = sink.error
            if sink.error is None:
                sink.flush()

    def _save_tiff(self, image: Any) -> None:
        bands, carried = self._bands, self._carried
        if carried.xmp is not None:
            image.set_type(vips().GValue.blob_type, "xmp-data", carried.xmp)
        raw_bytes = bands.height * bands.width * bands.channels * bands.dtype.itemsize
        options = dict(self._options, bigtiff=raw_bytes >= _BIG_BYTES)
        if max(bands.height, bands.width) > _PYRAMID_PX:
            options |= {"tile": True, "tile_width": 256, "tile_height": 256, "pyramid": True, "subifd": True}
        image.tiffsave(os.fsencode(self._temporary), **options)
        # libvips would state 72 dots an inch by itself.
        if carried.exif is not None or carried.iptc is not None or carried.dpi is None:
            with self._temporary.open("r+b") as file:
                graft(file, carried.exif, carried.iptc, resolution=carried.dpi is not None)


def _system_error(error: BaseException) -> BaseException:
    """Return what the system said, where libvips only passes on its words; else the last thing libvips said."""
    if isinstance(error, OSError):
        return error
    words = str(error)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        if os.strerror(code) in words:
            return OSError(code, os.strerror(code))
    return OSError(0, words.strip().splitlines()[-1].strip() if words.strip() else type(error).__name__)


class _Pieces:
    """The other end of the queue, as a file to read from."""

    def __init__(self, pieces: "queue.Queue[bytes | None]") -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._over = False

    def read(self, length: int) -> bytes | memoryview:
        """Return up to `length` bytes; none at the end."""
        while not self._rest and not self._over:
            piece = self._pieces.get()
            self._over = piece is None
            self._rest = memoryview(piece or b"")
        chunk, self._rest = self._rest[:length], self._rest[length:]
        return chunk


@dataclass(frozen=True)
class Inserted:
    """Metadata to put into a file as it passes, `at` that many bytes from its start. Of a PNG file the chunk `without`
    is taken out, if it comes before the pixels."""

    at: int
    content: bytes
    without: bytes = b""


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return b"".join((struct.pack(">I", len(content)), name, content, struct.pack(">I", zlib.crc32(name + content))))


def png_metadata(carried: Picture) -> Inserted:
    """Return EXIF, XMP, IPTC and texts as chunks of a PNG file, without the 72 dots an inch that libvips
    states by itself."""
    chunks = b""
    if carried.exif is not None:
        chunks += png_chunk(b"eXIf", carried.exif.removeprefix(PREFIX))
    chunks += b"".join(png_chunk(*chunk) for chunk in png_texts(carried))
    # Behind the signature and the chunk IHDR: length, name, 13 bytes, checksum.
    return Inserted(len(_PNG_START) + 12 + 13, chunks, without=b"" if carried.dpi else b"pHYs")


def jpeg_metadata(carried: Picture) -> Inserted:
    """Return resolution (JFIF), EXIF, XMP and IPTC as segments of a JPEG file."""
    # Unit 1 is dots an inch; without a resolution, unit 0 and square pixels.
    unit, across, down = (1, *(round(value) for value in carried.dpi)) if carried.dpi else (0, 1, 1)
    jfif = b"JFIF\0\1\1" + struct.pack(">BHHBB", unit, min(across, 0xFFFF), min(down, 0xFFFF), 0, 0)
    segments = _segment(0xE0, jfif)
    if carried.exif is not None:
        segments += _segment(0xE1, carried.exif)
    if carried.xmp is not None:
        segments += _segment(0xE1, XMP_HEADER + carried.xmp)
    if carried.iptc is not None:
        segments += iptc_segment(carried.iptc)
    return Inserted(2, segments)  # behind the two bytes that every JPEG file begins with


def iptc_segment(iptc: bytes) -> bytes:
    """Return IPTC records as a segment of a JPEG file."""
    return _segment(0xED, IPTC_HEADER + iptc_resource(iptc))


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


class _Sink:
    """Bytes from libvips to a file, with metadata put in on the way. Keeps the first error, never raises it."""

    def __init__(self, file: BinaryIO, inserted: Inserted) -> None:
        self._file, self._inserted = file, inserted
        self._start: bytes | None = b""  # None once it has passed
        self.error: BaseException | None = None

    def write(self, chunk: Any) -> int:
        if self.error is not None:
            return -1
        try:
            if self._start is None:
                self._file.write(chunk)
            else:
                self._start += bytes(chunk)
                until = b"IDAT" if self._inserted.without else b""
                if len(self._start) >= self._inserted.at and until in self._start:
                    self.flush()
        except BaseException as error:
            self.error = error
            return -1
        return len(chunk)

    def flush(self) -> None:
        if self._start is not None:
            at = self._inserted.at
            rest = _without_chunk(self._start[at:], self._inserted.without)
            self._file.write(self._start[:at] + self._inserted.content + rest)
            self._start = None
        self._file.flush()


def _without_chunk(chunks: bytes, name: bytes) -> bytes:
    """PNG chunks up to the pixels, and what follows, without the first of a name."""
    at = 0
    while name and chunks[at + 4 : at + 8] not in (b"IDAT", b""):
        end = at + 12 + int.from_bytes(chunks[at : at + 4], "big")
        if chunks[at + 4 : at + 8] == name:
            return chunks[:at] + chunks[end:]
        at = end
    return chunks


# How files of a DeepZoom end.
_ENDS = {".jpg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82", ".dzi": b">"}


def _check_tiles(final: Path, folder: Path) -> None:
    """Raise OutputError where a file in a new DeepZoom's folder is not whole: of small ones libvips does not notice
    that the disk has no room for them."""
    for path in folder.rglob("*.*"):
        if (end := _ENDS.get(path.suffix)) and path.is_file():
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 16))
                if not file.read().rstrip().endswith(end):
                    raise OutputError(f"{final}: cannot be written: {path.name} is not whole; is the disk full?")


@contextlib.contextmanager
def atomic_deepzoom(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty hidden folder; what appears in it as picture.dzi and picture_files is moved beside under the final
    name, the `.dzi` last.

    An older picture's tiles are put aside first and removed at the end; a kill just between leaves them in the hidden
    folder. Raises OutputError as `atomic_path` does.
    """
    target = check_target(final, overwrite=overwrite)
    check_tiles_folder(final, target, overwrite=overwrite)
    temporary = temporary_beside(target)
    tiles, new_tiles, old_tiles = tiles_folder(target), temporary / f"{_PYRAMID}_files", temporary / "old"
    try:
        try:
            temporary.mkdir()
        except OSError as error:
            raise cannot_write(final, error) from error
        yield temporary
        _check_tiles(final, temporary)
        try:
            # The tiles themselves are thousands of small files: flushed together, not one by one.
            flush_to_disk(temporary / f"{_PYRAMID}.dzi")
            if hasattr(os, "sync"):
                os.sync()
            check_tiles_folder(final, target, overwrite=overwrite)
            if tiles.exists():
                tiles.rename(old_tiles)
            new_tiles.rename(tiles)
            move_into_place(temporary / f"{_PYRAMID}.dzi", target, overwrite=overwrite)
        except BaseException as error:  # an interruption, too, would cost the picture that was there
            page = temporary / f"{_PYRAMID}.dzi"
            if page.exists() and not (target.exists() and target.samefile(page)):  # else all is in its place
                _put_back(tiles, new_tiles, old_tiles)
            if isinstance(error, OSError):
                raise cannot_write(final, error) from error
            raise
    finally:
        if not old_tiles.exists() or tiles.exists():  # else they are all that is left of the picture that was there
            shutil.rmtree(temporary, ignore_errors=True)


def _put_back(tiles: Path, new_tiles: Path, old_tiles: Path) -> None:
    with contextlib.suppress(OSError):
        if tiles.exists() and not new_tiles.exists():
            tiles.rename(new_tiles)
        if old_tiles.exists():
            old_tiles.rename(tiles)
