"""What files say of their pictures. EXIF and XMP after the picture was turned upright or enlarged: what would now be
false is mended, all else kept. IPTC and the texts of PNG files as they were.

EXIF is a small TIFF file: directories of 12-byte entries (tag, type, count, value or offset). It is mended in place,
byte for byte, because writing it anew breaks the offsets inside makers' notes.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from liif_cli.images.picture import Picture

PREFIX = b"Exif\0\0"

ORIENTATION = 0x0112
EXIF_DIRECTORY = 0x8769
_WIDTHS = (0x0100, 0xA002)
_HEIGHTS = (0x0101, 0xA003)
# Where a thumbnail begins and how long it is: of a JPEG, and of strips of plain pixels.
_THUMBNAILS = ((0x0201, 0x0202), (0x0111, 0x0117))
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_UNIT, _INCH, _CENTIMETRE = 0x0128, 2, 3
_RESOLUTION = (0x011A, 0x011B, _UNIT)


class _Exif:
    """The bytes of an EXIF block, open for small changes; ValueError or struct.error where it is damaged."""

    def __init__(self, block: bytes) -> None:
        self.data = bytearray(block.removeprefix(PREFIX))
        order = bytes(self.data[:4])
        if order not in (b"II*\0", b"MM\0*"):
            raise ValueError("not an EXIF block")
        self.order = "<" if order[:2] == b"II" else ">"
        self.first = self.number("I", 4)

    def number(self, kind: str, at: int) -> int:
        return int(struct.unpack_from(self.order + kind, self.data, at)[0])

    def put(self, kind: str, at: int, value: int) -> None:
        struct.pack_into(self.order + kind, self.data, at, value)

    def entries(self, directory: int) -> Iterator[tuple[int, int]]:
        """Tag and position of each entry."""
        for index in range(self.number("H", directory)):
            at = directory + 2 + 12 * index
            self.number("I", at + 8)
            yield self.number("H", at), at

    def value(self, at: int) -> int:
        return self.number("H" if self.number("H", at + 2) == _SHORT else "I", at + 8)

    def values(self, at: int) -> list[int]:
        """All numbers of an entry, SHORT or LONG."""
        kind, count = self.number("H", at + 2), self.number("I", at + 4)
        size, code = (2, "H") if kind == _SHORT else (4, "I")
        start = at + 8 if size * count <= 4 else self.number("I", at + 8)
        if size * count > len(self.data):
            raise ValueError("more numbers than there are bytes")
        return [self.number(code, start + size * number) for number in range(count)]

    def quotient(self, at: int) -> float:
        if self.number("H", at + 2) != _RATIONAL:
            raise ValueError("not a quotient")
        start = self.number("I", at + 8)
        return self.number("I", start) / self.number("I", start + 4)

    def set_value(self, at: int, value: int) -> None:
        """Make an entry one number; a LONG where a SHORT would not hold it."""
        kind = _SHORT if value < 1 << 16 and self.number("H", at + 2) == _SHORT else _LONG
        self.put("H", at + 2, kind)
        self.put("I", at + 4, 1)
        self.put("I", at + 8, 0)
        self.put("H" if kind == _SHORT else "I", at + 8, value)

    def block(self) -> bytes:
        return PREFIX + bytes(self.data)


def orientation(exif: bytes | None, xmp: bytes | None = None) -> int:
    """Return the orientation, 1 to 8, that EXIF or else XMP states; 1 where neither makes sense."""
    if exif:
        try:
            block = _Exif(exif)
            found = [block.value(at) for tag, at in block.entries(block.first) if tag == ORIENTATION]
        except (ValueError, struct.error):
            found = []
        if found:
            return found[0] if 1 <= found[0] <= 8 else 1
    match = _XMP_ORIENTATION.search(xmp or b"")
    return int(match["value"]) if match else 1


def resolution(exif: bytes | None) -> tuple[float, float] | None:
    """Return (horizontal, vertical) in dots an inch, as EXIF states it; None where it does not."""
    if not exif:
        return None
    try:
        block = _Exif(exif)
        known = {tag: at for tag, at in block.entries(block.first) if tag in _RESOLUTION}
        unit = block.value(known[_UNIT]) if _UNIT in known else _INCH
        across, down = (block.quotient(known[tag]) for tag in _RESOLUTION[:2])
    except (ValueError, KeyError, ZeroDivisionError, struct.error):
        return None
    inch = {_INCH: 1.0, _CENTIMETRE: 2.54}.get(unit)
    return None if inch is None else (across * inch, down * inch)


def upright_exif(exif: bytes | None) -> bytes | None:
    """Return the EXIF block with orientation 1, its resolution turned with the picture, and without its thumbnail; None
    where it is damaged."""
    if not exif:
        return None
    try:
        block = _Exif(exif)
        if orientation(exif) >= 5:
            across, down = ([at for tag, at in block.entries(block.first) if tag == way] for way in _RESOLUTION[:2])
            if across and down:  # all of the entries but their tags
                one, other = (slice(at[0] + 2, at[0] + 12) for at in (across, down))
                block.data[one], block.data[other] = block.data[other], block.data[one]
        for tag, at in block.entries(block.first):
            if tag == ORIENTATION:
                block.set_value(at, 1)
        link = block.first + 2 + 12 * block.number("H", block.first)
        if link + 4 <= len(block.data):
            _drop_thumbnail(block, block.number("I", link))
            block.put("I", link, 0)
    except (ValueError, struct.error):
        return None
    return block.block()


def _drop_thumbnail(block: _Exif, directory: int) -> None:
    if not directory:
        return
    try:
        wanted = {tag for pair in _THUMBNAILS for tag in pair}
        found = {tag: block.values(at) for tag, at in block.entries(directory) if tag in wanted}
    except (ValueError, struct.error):
        return  # unlinking the directory is enough
    for starts, lengths in _THUMBNAILS:
        for start, length in zip(found.get(starts, ()), found.get(lengths, ()), strict=False):
            if start > directory and start + length == len(block.data):
                del block.data[start:]  # where it nearly always lies; elsewhere it stays, unreferenced but blank
            elif start > directory and start + length < len(block.data):
                block.data[start : start + length] = bytes(length)


def without_orientation(exif: bytes) -> bytes:
    """Return the EXIF block without the entry for orientation, the others' values where they were."""
    try:
        block = _Exif(exif)
        while found := [at for tag, at in block.entries(block.first) if tag == ORIENTATION]:
            count, end = block.number("H", block.first), block.first + 2
            end += 12 * count + 4  # behind the link to the next directory
            block.data[found[0] : end] = block.data[found[0] + 12 : end] + bytes(12)
            block.put("H", block.first, count - 1)
    except (ValueError, struct.error):
        return exif
    return block.block()


def resized_exif(exif: bytes | None, size: tuple[int, int]) -> bytes | None:
    """Return the EXIF block with its picture size, where it states one, set to `size`."""
    if not exif:
        return None
    try:
        block = _Exif(exif)
        inner = [block.value(at) for tag, at in block.entries(block.first) if tag == EXIF_DIRECTORY]
        for directory in (block.first, *inner):
            for tag, at in block.entries(directory):
                if tag in _WIDTHS + _HEIGHTS:
                    block.set_value(at, size[1] if tag in _WIDTHS else size[0])
    except (ValueError, struct.error):
        return exif
    return block.block()


def _xmp_field(name: bytes, digits: bytes = rb"\d+") -> re.Pattern[bytes]:
    # <tiff:Orientation>6</tiff:Orientation> or tiff:Orientation="6"
    return re.compile(rb"(?P<before>" + name + rb"\s*(?:=\s*[\"']|>)\s*)(?P<value>" + digits + rb")(?=\s*[\"'<])")


_XMP_ORIENTATION = _xmp_field(rb"tiff:Orientation", rb"[1-8]")
_XMP_WIDTH = _xmp_field(rb"(?:exif:PixelXDimension|tiff:ImageWidth)")
_XMP_HEIGHT = _xmp_field(rb"(?:exif:PixelYDimension|tiff:ImageLength)")


# What announces more behind a picture, which does not come along: the rest of a long packet, a telephone's gain map or
# film: xmpNote:HasExtendedXMP="...", hdrgm:Version="1.0", GCamera:MotionPhoto="1",
# <Container:Directory>...</Container:Directory>.
_BEHIND = (
    rb"(?:xmpNote:HasExtendedXMP|hdrgm:\w+|(?:GCamera|Camera):(?:MotionPhoto|MicroVideo)\w*"
    rb"|(?:GContainer|Container):Directory)"
)
_XMP_BEHIND = re.compile(
    rb"\s" + _BEHIND + rb"\s*=\s*(?:\"[^\"]{0,4096}\"|'[^']{0,4096}')"
    rb"|<(?P<name>" + _BEHIND + rb")\b(?:[^>]{0,4096}/>|.{0,4096}?</(?P=name)\s*>)",
    re.DOTALL,
)
_LONGEST_XMP = 1 << 18  # beyond, and without the bounds above, a hostile packet would take hours


def upright_xmp(xmp: bytes | None) -> bytes | None:
    """Return the XMP packet of what was read alone: with orientation 1, without what announces more behind the
    picture."""
    if not xmp:
        return None
    upright = _XMP_ORIENTATION.sub(rb"\g<before>1", xmp)
    return _XMP_BEHIND.sub(b"", upright) if len(upright) <= _LONGEST_XMP else upright


def resized_xmp(xmp: bytes | None, size: tuple[int, int]) -> bytes | None:
    """Return the XMP packet with its picture size, where it states one, set to `size`."""
    if not xmp:
        return None
    for field, length in ((_XMP_WIDTH, size[1]), (_XMP_HEIGHT, size[0])):
        xmp = field.sub(rb"\g<before>%d" % length, xmp)
    return xmp


# IPTC's records travel as one of Photoshop's resources: "8BIM", number, name, length, content; all of even length.
_RESOURCE, _IPTC_RESOURCE, _IPTC_START = b"8BIM", 0x0404, b"\x1c"
_RAW_PROFILE = "Raw profile type "  # what ImageMagick began, and others read, where PNG has no chunk of its own
_XMP_KEYWORD = "XML:com.adobe.xmp"
# Texts that are carried otherwise, or speak of the pixels that were.
_NOT_CARRIED = (_XMP_KEYWORD, _RAW_PROFILE, "Thumb::", "exif:", "tiff:", "png:")


def iptc_resource(iptc: bytes) -> bytes:
    """Return IPTC records as a resource of Photoshop's."""
    return _RESOURCE + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)


def iptc_of(block: bytes | None) -> bytes | None:
    """Return the IPTC records in a block of Photoshop's resources, or that are the block; None where there are none."""
    block = block or b""
    at = 0
    while block[at : at + 4] == _RESOURCE and len(block) >= at + 12:
        number, name = struct.unpack_from(">HB", block, at + 4)
        length_at = at + 6 + (name + 2) // 2 * 2  # the name counts its letters, and is filled up
        if len(block) < length_at + 4:
            break
        start, length = length_at + 4, int.from_bytes(block[length_at : length_at + 4], "big")
        if number == _IPTC_RESOURCE:
            block = block[start : start + length]
            break
        at = start + length + length % 2
    return block if block.startswith(_IPTC_START) else None


def iptc_in(info: dict[Any, Any]) -> bytes | None:
    """Return the IPTC records that Pillow found in a JPEG or PNG file, if any."""
    resources = info.get("photoshop")
    found = resources.get(_IPTC_RESOURCE) if isinstance(resources, dict) else None
    for kind in ("iptc", "8bim"):
        found = found or raw_profile(info, kind)
    return iptc_of(found) if isinstance(found, bytes) else None


def raw_profile(info: dict[Any, Any], kind: str) -> bytes | None:
    """Return what ImageMagick put as hexadecimal digits into a text of a PNG file that Pillow has read, if any."""
    profile = info.get(_RAW_PROFILE + kind)
    try:
        # Behind an empty line, name and length.
        return bytes.fromhex("".join(profile.split("\n")[3:])) if isinstance(profile, str) else None
    except ValueError:
        return None


def texts_in(info: dict[Any, Any]) -> tuple[tuple[str, str], ...]:
    """Return the texts that Pillow found in a PNG file, without those that are carried otherwise or are now false."""
    return tuple(
        (keyword, text)
        for keyword, text in info.items()
        if isinstance(keyword, str) and 0 < len(keyword) < 80 and isinstance(text, str)
        if not keyword.startswith(_NOT_CARRIED)
    )


def png_texts(like: Picture) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a PNG file, (name, content), that hold XMP, IPTC and texts."""
    chunks = []
    if like.xmp is not None:
        # Behind the keyword: no compression, no language, no translation.
        chunks.append((b"iTXt", _XMP_KEYWORD.encode() + bytes(5) + like.xmp))
    if like.iptc is not None:
        resource = iptc_resource(like.iptc)
        digits = resource.hex()
        lines = [digits[at : at + 72] for at in range(0, len(digits), 72)]
        profile = "\n".join(["", "iptc", f"{len(resource):8}", *lines, ""])
        chunks.append((b"zTXt", f"{_RAW_PROFILE}iptc\0\0".encode() + zlib.compress(profile.encode())))
    for keyword, text in like.texts:
        name = keyword.encode("latin-1", "replace")
        # Pillow's texts know their language.
        language, translated = (getattr(text, key, None) or "" for key in ("lang", "tkey"))
        if language or translated or any(ord(letter) > 255 for letter in text):
            rest = (language.encode("latin-1", "replace"), translated.encode(), text.encode())
            chunks.append((b"iTXt", name + bytes(3) + b"\0".join(rest)))
        else:
            chunks.append((b"tEXt", name + b"\0" + text.encode("latin-1")))
    return chunks
