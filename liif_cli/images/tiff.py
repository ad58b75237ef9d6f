"""The directories of TIFF files: EXIF out of them, and into finished ones, which libvips and Pillow do only in part.

A TIFF file begins with its byte order, a version (42, or 43 with 64-bit offsets) and the offset of its first directory.
A directory counts its entries (tag, type, count, and the value or its offset) and ends with the offset of the next one.
EXIF is the same on a small scale. Since values keep their places, a directory may be copied to the end of a file with
entries added, and the header pointed at it.
"""

import io
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from liif_cli.images.metadata import EXIF_DIRECTORY, ORIENTATION, PREFIX

_GPS_DIRECTORY, _INTEROP_DIRECTORY = 0x8825, 0xA005
_DIRECTORIES = (EXIF_DIRECTORY, _GPS_DIRECTORY, _INTEROP_DIRECTORY)
# Words about the picture: description, maker, model, software, date, artist, host, copyright, and Windows' titles.
_DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x8298, *range(0x9C9B, 0x9CA0))
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES, _XMP = 0x0102, 0x0103, 0x0106, 0x0115, 0x0152, 0x02BC
_SUBSAMPLING = 0x0212
_RESOLUTION = _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
_IPTC = (0x83BB, 0x8649)  # of its own, or among Photoshop's resources
# How pixels lie in a file, which is not true of another one: subfile to compression, photometric, threshold and order
# of bits, strips, samples, planes, free room, fax options, predictor, palette, tiles, subdirectories, kinds of samples,
# JPEG's streams.
_LAYOUT = frozenset(
    (*range(0xFE, 0x104), *range(0x106, 0x10B), 0x111, *range(0x115, 0x11A), 0x11C, 0x120, 0x121, 0x124, 0x125)
) | {0x13D, 0x140, *range(0x142, 0x146), 0x14A, *range(0x152, 0x158), 0x15B, *range(0x200, 0x20A)}
# Where JPEG compression keeps its tables: together in a tag, or at the beginning of each strip or tile.
JPEG, JPEG_TABLES, _STRIPS, _TILES = 7, 0x015B, 0x0111, 0x0144

_PAGE_TAGS = _SUBFILE, _WIDTH, _HEIGHT = 0x00FE, 0x0100, 0x0101
_SUBDIRECTORIES = 0x014A
_REDUCED, _PAGE, _MASK = 1, 2, 4  # bits of the subfile's type
_MOST_DIRECTORIES = 100  # that are looked at: a hostile file may have no end of them

_SHORT, _LONG, _RATIONAL, _BYTES, _WIDE, _WIDE_DIRECTORY = 3, 4, 5, 7, 16, 18
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
# The words a number of each type is made of, for turning the byte order; bytes and text have none.
_TYPE_WORD = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4, 16: 8}


@dataclass(frozen=True)
class _Layout:
    """Byte order and width of offsets: 4 bytes in a classic file, 8 in a wide one."""

    order: str
    wide: bool

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.wide else "I")

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.wide else "H")

    @property
    def entry(self) -> str:
        return self.order + ("HHQ8s" if self.wide else "HHI4s")

    @property
    def room(self) -> int:
        """How many bytes of a value an entry itself holds; also where the header keeps the first offset."""
        return 8 if self.wide else 4


@dataclass(frozen=True)
class _Value:
    """One entry taken out of its file: its bytes in little-endian order, or the directory it points to."""

    kind: int
    count: int
    content: bytes
    directory: "dict[int, _Value] | None" = None

    def numbers(self) -> list[float]:
        """The value as numbers; empty where it is none."""
        if word := {_SHORT: "H", _LONG: "I", _WIDE: "Q"}.get(self.kind):
            return [float(number) for number in struct.unpack(f"<{self.count}{word}", self.content)]
        if self.kind == _RATIONAL:
            pairs = struct.iter_unpack("<II", self.content)
            return [above / below if below else 0.0 for above, below in pairs]
        return []


def metadata_of(file: BinaryIO) -> dict[str, Any]:
    """Return what a TIFF file says of its first picture: "exif", "xmp", "iptc", "dpi", "orientation", "photometric",
    "compression", "bits" (a sample), "samples" (a pixel), "extra_samples" (their kinds), "subsampling" (of YCbCr,
    across and down) and, of JPEG compression, "quantisation" (the first table, as `first_table`).

    The EXIF block holds the words about the picture and the directories of camera and place, not the tags of the
    layout. Raises struct.error, ValueError or OSError for a damaged file.
    """
    layout, first = _header(file)
    single = {
        ORIENTATION: "orientation",
        _PHOTOMETRIC: "photometric",
        _COMPRESSION: "compression",
        _BITS: "bits",
        _SAMPLES: "samples",
    }
    several = {_EXTRA_SAMPLES: "extra_samples", _SUBSAMPLING: "subsampling"}
    others = (*_RESOLUTION, *several, _XMP, *_IPTC)
    tags = _tags_at(file, layout, first, (*_DESCRIPTIVE, *_DIRECTORIES, *others, *single))
    found: dict[str, Any] = {}
    carried = {tag: value for tag, value in tags.items() if tag in _DESCRIPTIVE or value.directory}
    if carried:
        found["exif"] = _exif_block(carried)
    if _XMP in tags:
        found["xmp"] = tags[_XMP].content
    for tag in _IPTC:
        if tag in tags and "iptc" not in found:
            # Bytes as they lie, whatever numbers the entry says they are.
            found["iptc"] = _in_order(tags[tag].content, tags[tag].kind, layout.order)
    across, down, unit = (tags[tag].numbers() if tag in tags else [] for tag in _RESOLUTION)
    if across and down and unit != [1.0]:  # unit 1: a ratio of no known unit
        inch = 2.54 if unit == [3.0] else 1.0
        found["dpi"] = (across[0] * inch, down[0] * inch)
    for tag, name in single.items():
        if tag in tags and (numbers := tags[tag].numbers()):
            found[name] = int(numbers[0])
    for tag, name in several.items():
        if tag in tags:
            found[name] = tuple(map(int, tags[tag].numbers()))
    if found.get("compression") == JPEG:
        found["quantisation"] = _jpeg_table(file, layout, first)
    return found


_JPEG_HEAD_BYTES = 4096
_SCAN, _QUANTISATION = 0xDA, 0xDB


def _jpeg_table(file: BinaryIO, layout: _Layout, directory: int) -> list[int]:
    tags = _tags_at(file, layout, directory, (JPEG_TABLES, _STRIPS, _TILES))
    if JPEG_TABLES in tags and (table := first_table(tags[JPEG_TABLES].content)):
        return table
    offsets = next((tags[tag].numbers() for tag in (_STRIPS, _TILES) if tag in tags), [])
    if not offsets:
        return []
    file.seek(int(offsets[0]))
    return first_table(file.read(_JPEG_HEAD_BYTES))


def first_table(jpeg: bytes) -> list[int]:
    """The first quantisation table in the head of a JPEG stream, 64 numbers (ITU-T T.81, B.2.4.1), empty where there is
    none."""
    at = 2  # behind the start of the image
    while len(jpeg) >= at + 5 and jpeg[at] == 0xFF and jpeg[at + 1] != _SCAN:
        length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] == _QUANTISATION:
            words = 2 if jpeg[at + 4] >> 4 else 1
            values = jpeg[at + 5 : at + 5 + 64 * words]
            return list(struct.unpack(f">64{'BH'[words - 1]}", values)) if len(values) == 64 * words else []
        at += 2 + length
    return []


def count_pages(file: BinaryIO) -> int:
    """Return how many pictures a TIFF file holds one after another, without its previews and reduced copies; 0 where it
    begins with a preview of what comes later, as camera raws do.

    Raises struct.error, ValueError or OSError for a damaged file.
    """
    layout, at = _header(file)
    seen: set[int] = set()
    sizes: list[tuple[float, float]] = []
    pages = 0
    more_below = any(tag == _SUBDIRECTORIES for tag, _ in _entries(file, layout, at)[0])
    begins_with_preview = False
    while at and at not in seen and len(seen) < _MOST_DIRECTORIES:
        seen.add(at)
        tags = _tags_at(file, layout, at, _PAGE_TAGS)
        kind, width, height = ((tags[tag].numbers() or [0])[0] if tag in tags else 0 for tag in _PAGE_TAGS)
        if not int(kind) & (_REDUCED | _MASK):
            sizes.append((width, height))
            # Some previews are not marked as such.
            pages += bool(int(kind) & _PAGE) or 2 * width >= sizes[0][0] or 2 * height >= sizes[0][1]
        elif len(seen) == 1:
            begins_with_preview = bool(int(kind) & _REDUCED)
        at = _entries(file, layout, at)[1]
    if begins_with_preview and (sizes or more_below):
        return 0
    return max(1, pages)


def graft(file: BinaryIO, exif: bytes | None, iptc: bytes | None, *, resolution: bool = True) -> None:
    """Add an EXIF block and IPTC records to a finished TIFF file, open for reading and writing; tags it has already
    stay as they are, but for the resolution where it is not to be stated. Tags of another file's layout, as programs
    copy them into EXIF, are left out.

    An EXIF block that cannot be followed adds nothing. Raises OSError where the file cannot be changed.
    """
    tags = {}
    try:
        block = io.BytesIO((exif or b"").removeprefix(PREFIX))
        source, start = _header(block)
        tags = _tags_at(block, source, start, None)
    except (struct.error, ValueError):
        pass
    if iptc is not None:
        tags[_IPTC[0]] = _Value(_BYTES, len(iptc), iptc)
    layout, first = _header(file)
    entries, following = _entries(file, layout, first)
    known = {tag: entry for tag, entry in entries if resolution or tag not in _RESOLUTION}
    for tag, value in tags.items():
        if tag in _RESOLUTION and not resolution:
            continue
        if tag != ORIENTATION and tag not in known and tag not in _LAYOUT:
            known[tag] = _append_value(file, layout, value)
    _point_at(file, layout, _append_directory(file, layout, known, following))


def _exif_block(tags: dict[int, _Value]) -> bytes:
    layout, file = _Layout("<", wide=False), io.BytesIO()
    file.write(b"II*\0\0\0\0\0")
    entries = {tag: _append_value(file, layout, value) for tag, value in tags.items()}
    _point_at(file, layout, _append_directory(file, layout, entries, 0))
    return PREFIX + file.getvalue()


def _header(file: BinaryIO) -> tuple[_Layout, int]:
    """Return the layout and the offset of the first directory."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        raise ValueError("no TIFF structure")
    layout = _Layout(order, wide=struct.unpack_from(order + "H", head, 2)[0] == 43)
    return layout, int(struct.unpack_from(layout.offset, head, layout.room)[0])


def _entries(file: BinaryIO, layout: _Layout, at: int) -> tuple[list[tuple[int, bytes]], int]:
    """Return each entry as its tag and what follows that, and the offset of the next directory."""
    file.seek(at)
    number = struct.unpack(layout.count, file.read(struct.calcsize(layout.count)))[0]
    length = struct.calcsize(layout.entry)
    if number > 0xFFFF:
        raise ValueError("a directory of too many entries")
    raw = file.read(number * length)
    following = struct.unpack(layout.offset, file.read(layout.room))[0]
    starts = range(0, number * length, length)
    return [(struct.unpack_from(layout.order + "H", raw, at)[0], raw[at + 2 : at + length]) for at in starts], following


_MOST_BYTES = 1 << 26  # of all values of a file


def _tags_at(
    file: BinaryIO,
    layout: _Layout,
    at: int,
    wanted: tuple[int, ...] | None,
    depth: int = 0,
    room: list[int] | None = None,
) -> dict[int, _Value]:
    """Return the wanted entries of a directory (None: all) with their values; what is damaged, or more than there is
    ``room`` for, in bytes, is left out: many entries may name the same bytes."""
    tags = {}
    room = [_MOST_BYTES] if room is None else room
    for tag, rest in _entries(file, layout, at)[0]:
        if wanted is not None and tag not in wanted:
            continue
        kind, count, field = struct.unpack(layout.order + layout.entry[2:], rest)
        if tag in _DIRECTORIES:
            pointer = struct.unpack_from(layout.offset, field)[0]
            # Three levels are the most that make sense: picture, camera, interoperability. More is a circle.
            if depth < 2 and (inner := _inner(file, layout, pointer, depth, room)):
                tags[tag] = _Value(_LONG, 1, b"", inner)
        elif kind in _TYPE_BYTES:
            length = _TYPE_BYTES[kind] * count
            content = field[:length] if length <= layout.room else b""
            if length > layout.room and length <= room[0]:
                room[0] -= length
                file.seek(min(struct.unpack(layout.offset, field)[0], (1 << 63) - 1))
                content = file.read(length)
            if len(content) == length:
                tags[tag] = _Value(kind, count, _in_order(content, kind, layout.order))
    return tags


def _inner(file: BinaryIO, layout: _Layout, at: int, depth: int, room: list[int]) -> dict[int, _Value]:
    try:
        return _tags_at(file, layout, at, None, depth + 1, room)
    except (struct.error, ValueError, OverflowError):
        return {}


def _in_order(content: bytes, kind: int, order: str) -> bytes:
    """Return numbers turned from `order` to little-endian, or back: it is the same turn."""
    word = _TYPE_WORD.get(kind)
    if word is None or order == "<":
        return content
    return b"".join(content[at : at + word][::-1] for at in range(0, len(content), word))


def _append_value(file: BinaryIO, layout: _Layout, value: _Value) -> bytes:
    """Return the entry of a value, after its tag; what is too long for an entry goes to the end of the file."""
    kind = value.kind
    if value.directory is not None:
        inner = {tag: _append_value(file, layout, each) for tag, each in value.directory.items()}
        # A plain LONG would be too narrow for offsets beyond 4 GB.
        kind = _WIDE_DIRECTORY if layout.wide else _LONG
        field = struct.pack(layout.offset, _append_directory(file, layout, inner, 0))
    else:
        field = _in_order(value.content, kind, layout.order)
        if len(field) > layout.room:
            field = struct.pack(layout.offset, _append(file, field))
    return struct.pack(layout.order + layout.entry[2:], kind, value.count, field.ljust(layout.room, b"\0"))


def _append_directory(file: BinaryIO, layout: _Layout, entries: dict[int, bytes], following: int) -> int:
    ordered = b"".join(struct.pack(layout.order + "H", tag) + entries[tag] for tag in sorted(entries))
    return _append(file, struct.pack(layout.count, len(entries)) + ordered + struct.pack(layout.offset, following))


def _append(file: BinaryIO, content: bytes) -> int:
    at = file.seek(0, io.SEEK_END)
    if at % 2:  # offsets are even
        at += file.write(b"\0")
    file.write(content)
    return at


def _point_at(file: BinaryIO, layout: _Layout, directory: int) -> None:
    file.seek(layout.room)
    file.write(struct.pack(layout.offset, directory))
