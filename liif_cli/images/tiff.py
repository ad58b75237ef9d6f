"""EXIF into a finished TIFF file, which libvips cannot write: new directories at its end, and the first one moved
there.

A TIFF file begins with its byte order, a version (42, or 43 with 64-bit offsets) and the offset of its first directory.
A directory counts its entries (tag, type, count, value or the value's offset) and ends with the offset of the next one.
Since values keep their places, a directory may be copied to the end with entries added, and the header pointed at it.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from liif_cli.images.metadata import EXIF_DIRECTORY, ORIENTATION, PREFIX

_GPS_DIRECTORY, _INTEROP_DIRECTORY = 0x8825, 0xA005
_DIRECTORIES = (EXIF_DIRECTORY, _GPS_DIRECTORY, _INTEROP_DIRECTORY)
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
# What a number of each type is made of, for turning the byte order; bytes and text have none.
_TYPE_WORD = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}
_LONG, _LONG8 = 4, 16


@dataclass(frozen=True)
class _Layout:
    """Byte order and width of offsets: 4 bytes in a classic file, 8 in a big one."""

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


@dataclass(frozen=True)
class _Value:
    """One entry taken out of its file: its bytes, or the entries of a directory it points to."""

    kind: int
    count: int
    content: bytes
    directory: "dict[int, _Value] | None" = None


def graft_exif(path: Path, exif: bytes) -> None:
    """Add the EXIF block (with or without its prefix) to the TIFF file; tags the file has already stay as they are.

    A block that cannot be followed adds nothing. Raises OSError where the file cannot be changed.
    """
    try:
        tags = _exif_tags(exif.removeprefix(PREFIX))
    except (struct.error, KeyError, ValueError):
        return
    tags.pop(ORIENTATION, None)
    with path.open("r+b") as file:
        head = file.read(16)
        wide = head[2:4] in (b"+\0", b"\0+")
        layout = _Layout("<" if head[:2] == b"II" else ">", wide)
        at = 8 if wide else 4
        first = struct.unpack_from(layout.offset, head, at)[0]
        entries, following = _read_entries(file, layout, first)
        added = {tag: value for tag, value in tags.items() if tag not in entries}
        if not added:
            return
        for tag, value in added.items():
            entries[tag] = _append_value(file, layout, tag, value)
        moved = _append_directory(file, layout, entries, following)
        file.seek(at)
        file.write(struct.pack(layout.offset, moved))


def _exif_tags(block: bytes) -> dict[int, _Value]:
    layout = _Layout("<" if block[:2] == b"II" else ">", wide=False)
    return _tags_at(block, layout, struct.unpack_from(layout.offset, block, 4)[0], depth=0)


def _tags_at(block: bytes, layout: _Layout, at: int, depth: int) -> dict[int, _Value]:
    if depth > 3:
        raise ValueError("directories that contain one another")
    tags = {}
    for index in range(struct.unpack_from(layout.count, block, at)[0]):
        tag, kind, count, field = struct.unpack_from(layout.entry, block, at + 2 + 12 * index)
        if kind not in _TYPE_BYTES:
            continue
        if tag in _DIRECTORIES:
            inner = _tags_at(block, layout, struct.unpack(layout.offset, field)[0], depth + 1)
            tags[tag] = _Value(_LONG, 1, b"", inner)
            continue
        length = _TYPE_BYTES[kind] * count
        start = struct.unpack(layout.offset, field)[0]
        content = field[:length] if length <= 4 else block[start : start + length]
        if len(content) == length:
            tags[tag] = _Value(kind, count, _in_order(content, kind, layout.order))
    return tags


def _in_order(content: bytes, kind: int, order: str) -> bytes:
    """Return numbers turned from `order` to little-endian, or back: it is the same turn."""
    word = _TYPE_WORD.get(kind)
    if word is None or order == "<":
        return content
    return b"".join(content[at : at + word][::-1] for at in range(0, len(content), word))


def _read_entries(file: BinaryIO, layout: _Layout, at: int) -> tuple[dict[int, bytes], int]:
    """Return each entry after its tag, as it lies in the file, and the offset of the next directory."""
    file.seek(at)
    number = struct.unpack(layout.count, file.read(struct.calcsize(layout.count)))[0]
    length = struct.calcsize(layout.entry)
    entries = {}
    for _ in range(number):
        entry = file.read(length)
        entries[struct.unpack_from(layout.order + "H", entry)[0]] = entry[2:]
    return entries, struct.unpack(layout.offset, file.read(struct.calcsize(layout.offset)))[0]


def _append_value(file: BinaryIO, layout: _Layout, tag: int, value: _Value) -> bytes:
    """Return the entry of a value after its tag; longer ones go to the end of the file."""
    room = 8 if layout.wide else 4
    if value.directory is not None:
        inner = {tag: _append_value(file, layout, tag, each) for tag, each in value.directory.items()}
        field = struct.pack(layout.offset, _append_directory(file, layout, inner, 0))
        return struct.pack(layout.entry, tag, 13 if not layout.wide else 18, 1, field)[2:]
    content = _in_order(value.content, value.kind, layout.order)
    field = content if len(content) <= room else struct.pack(layout.offset, _append(file, content))
    return struct.pack(layout.entry, tag, value.kind, value.count, field.ljust(room, b"\0"))[2:]


def _append_directory(file: BinaryIO, layout: _Layout, entries: dict[int, bytes], following: int) -> int:
    ordered = b"".join(struct.pack(layout.order + "H", tag) + entries[tag] for tag in sorted(entries))
    return _append(file, struct.pack(layout.count, len(entries)) + ordered + struct.pack(layout.offset, following))


def _append(file: BinaryIO, content: bytes) -> int:
    at = file.seek(0, 2)
    if at % 2:  # offsets are even
        at += file.write(b"\0")
    file.write(content)
    return at
