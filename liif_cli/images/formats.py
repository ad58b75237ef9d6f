"""What each output format can hold, as one table, and the questions asked of it before any work is done."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liif_cli.errors import OutputError, UsageError
from liif_cli.files import check_target
from liif_cli.images.metadata import iptc_resource
from liif_cli.images.picture import Picture


@dataclass(frozen=True)
class Format:
    """One row: its name, its extensions (the first is the usual one), and its limits.

    `longest_px` is a side's limit, `largest_px` that of all pixels. `streams`: written band by band, in
    constant memory. `lossy`: a quality may be chosen. `share`: what is left of the uncompressed bytes at least, by
    experience, for the estimate of space. `segment_bytes`: the most that one piece of metadata may have. `rows`: of
    the output that a stream holds, about, measured. `encoder_px`: bytes a pixel that encoding from memory takes,
    measured of noise, which is the hardest, and for AVIF of photographs.
    """

    name: str
    extensions: tuple[str, ...]
    longest_px: int
    alpha: bool
    deep: bool
    streams: bool
    share: float
    lossy: bool = False
    largest_px: int | None = None
    segment_bytes: int | None = None
    rows: int = 0
    encoder_px: int = 4  # Pillow's copy


_NO_LIMIT = (1 << 31) - 1
STREAM_BYTES = 30 << 20  # libvips's own buffers
LOSSLESS_WEBP_PX = 60  # as `encoder_px`

FORMATS = (
    Format("PNG", (".png", ".apng"), _NO_LIMIT, alpha=True, deep=True, streams=True, share=0.25, rows=800),
    # 65,500 is the limit of libjpeg, below that of the format. A segment has 16 bits of length, two bytes of it its
    # own.
    Format(
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        65_500,
        alpha=False,
        deep=False,
        streams=True,
        share=0.03,
        lossy=True,
        segment_bytes=65_533,
        rows=800,
    ),
    Format("WebP", (".webp",), 16_383, alpha=True, deep=False, streams=False, share=0.02, lossy=True, encoder_px=30),
    Format("TIFF", (".tif", ".tiff"), _NO_LIMIT, alpha=True, deep=True, streams=True, share=0.25, rows=1300),
    # The format holds 65,535 a side, but readers stop at these limits of libavif.
    Format(
        "AVIF",
        (".avif",),
        32_768,
        alpha=True,
        deep=False,
        streams=False,
        share=0.01,
        lossy=True,
        largest_px=1 << 28,
        encoder_px=40,
    ),
    Format("GIF", (".gif",), 65_535, alpha=True, deep=False, streams=False, share=0.05, encoder_px=56),
    # Its lengths are 32-bit: 4 GB at three bytes a pixel.
    Format(
        "BMP", (".bmp", ".dib"), _NO_LIMIT, alpha=False, deep=False, streams=False, share=1.0, largest_px=1_431_000_000
    ),
    # A pyramid of tiles, JPEG where they are opaque and 8-bit, else PNG.
    Format("DeepZoom", (".dzi",), _NO_LIMIT, alpha=True, deep=True, streams=True, share=0.03, lossy=True, rows=1300),
)


def format_of(path: Path, name: str | None = None) -> Format:
    """Return the format of that name or extension ("png", ".tif", "DeepZoom"), or else by the extension of `path`.

    Raises UsageError that names the known ones.
    """
    wanted = (name or path.suffix).lower()
    for known in FORMATS:
        if wanted in (known.name.lower(), *known.extensions, *(extension[1:] for extension in known.extensions)):
            return known
    if wanted in (".heic", ".heif", ".hif", "heic", "heif"):
        raise UsageError(f"{path}: HEIC can be read but not written; use .avif, .jpg or .png")
    extensions = ", ".join(known.extensions[0] for known in FORMATS)
    if not wanted:
        raise UsageError(f"{path}: has no extension to tell the format by; add one of {extensions}")
    raise UsageError(
        f"{path}: {wanted} is no format liif can write; use one of {extensions}, or end the name of a folder with /"
    )


def check_output(
    path: Path,
    size: tuple[int, int],
    like: Picture,
    *,
    format: str | None = None,
    strip: bool = False,
    budget_bytes: int | None = None,
    overwrite: bool = False,
) -> Format:
    """Ask, before any work, whether `path` can become a picture of `size` with the channels and the depth of `like`.

    Returns the format. Raises UsageError for an unknown one, OutputError for whatever would fail later: too long a
    side, alpha or 16 bits that the format cannot hold, too large for memory (`budget_bytes`) in a format that does
    not stream, a folder that is missing or closed, a file that exists, too little space on the disk.
    """
    known = format_of(path, format)
    _check_capacity(path, known, size, like)
    _check_metadata(path, known, like, strip=strip)
    if budget_bytes is not None and not known.streams and held_bytes(size, like) > budget_bytes:
        raise OutputError(
            f"{path}: {known.name} is written from memory, and {_amount(held_bytes(size, like))} are more than the "
            f"budget of {_amount(budget_bytes)}; use {_those(lambda other: other.streams)}, or allow more memory"
        )
    target = check_target(path, overwrite=overwrite)
    if known.name == "DeepZoom":
        check_tiles_folder(path, target, overwrite=overwrite)
    # A pyramid's tiles are PNG files where JPEG does not hold them, and a third more than the picture.
    share = 0.33 if known.name == "DeepZoom" and (like.has_alpha or like.depth > 8) else known.share
    needed_bytes = size[0] * size[1] * like.channels * like.pixels.itemsize * share
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError:  # not every file system tells
        free = None
    if free is not None and free < needed_bytes:
        raise OutputError(
            f"{path}: about {_amount(needed_bytes)} are needed and {_amount(free)} are free on this disk; free some"
            " space or name another folder"
        )
    return known


_TILE = re.compile(r"\d+_\d+\.(jpe?g|png)")


def tiles_folder(path: Path) -> Path:
    """Return the folder of a DeepZoom picture's tiles, which stands beside its `.dzi` file."""
    return path.with_name(path.stem + "_files")


def check_tiles_folder(path: Path, target: Path, *, overwrite: bool) -> None:
    """Raise OutputError where a DeepZoom picture's folder of tiles is already there and must stay."""
    folder = tiles_folder(target)
    if not os.path.lexists(folder):
        return
    # A browser's saved page has such a folder, too, and photographs may lie in folders called by years.
    if not target.exists() and not _are_tiles(folder):
        raise OutputError(f"{path}: its folder {folder} already exists and is no picture's; choose another name")
    if not overwrite:
        raise OutputError(f"{path}: its folder {folder} already exists; add --overwrite to replace it")


def _are_tiles(folder: Path) -> bool:
    """Whether a folder holds nothing but folders, one for each level, of tiles: 7/0_3.jpg."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    return all(
        level.name.isdecimal() and level.is_dir() and all(_TILE.fullmatch(tile.name) for tile in level.glob("*"))
        for level in folder.glob("*")
    )


def held_bytes(size: tuple[int, int], like: Picture) -> int:
    """Return the bytes taken by a picture that is written from memory: its array, and Pillow's copy of four a pixel."""
    return size[0] * size[1] * (like.channels * like.pixels.itemsize + 4)


def writing_bytes(
    known: Format, size: tuple[int, int], like: Picture, quality: int | None = None, *, streamed: bool
) -> int:
    """Return about what writing takes: as a stream, its buffers; from memory, the picture and what encodes it."""
    sample = like.channels * like.pixels.itemsize
    if streamed:
        return STREAM_BYTES + min(known.rows, size[0]) * size[1] * sample
    return size[0] * size[1] * (sample + encoding_px(known, like, quality))


def encoding_px(known: Format, like: Picture, quality: int | None, *, moving: bool = False) -> int:
    """Return about how many bytes a pixel encoding from memory takes beside the picture."""
    lossless = known.name == "WebP" and is_kept_lossless(like, quality, moving=moving)
    return LOSSLESS_WEBP_PX if lossless else known.encoder_px


def is_kept_lossless(like: Picture, quality: int | None, *, moving: bool) -> bool:
    """Whether a picture is written as WebP without loss: no quality is asked for, and it had no loss before, as a WebP
    file or, where it moves, in any."""
    return quality is None and like.lossless and (moving or like.format == "WEBP")


def _check_capacity(path: Path, known: Format, size: tuple[int, int], like: Picture) -> None:
    height, width = size
    if height < 1 or width < 1:
        raise OutputError(f"{path}: a picture of {width}x{height} has no pixels; ask for at least 1x1")
    if max(size) > known.longest_px:
        raise OutputError(
            f"{path}: {known.name} holds at most {known.longest_px:,} pixels per side and {width:,}x{height:,} are "
            f"asked for; use {_those(lambda other: _holds(other, size))}"
        )
    if not _holds(known, size):
        most = f"{(known.largest_px or 0) / 1e6:,.0f} million pixels"
        raise OutputError(f"{path}: {known.name} holds at most {most}; use {_those(lambda other: _holds(other, size))}")
    if like.pixels.dtype not in (np.uint8, np.uint16):
        raise OutputError(f"{path}: floating-point pixels cannot be written; convert them to uint8 or uint16 first")
    if like.depth > 8 and not known.deep:
        raise OutputError(
            f"{path}: {known.name} cannot hold 16 bits per channel; use {_those(lambda other: other.deep)},"
            " or --depth 8"
        )
    if like.alpha is None:
        return
    if not known.alpha:
        raise OutputError(
            f"{path}: {known.name} cannot hold transparency; use {_those(lambda other: other.alpha)}, or --background"
            " white"
        )
    if known.name == "GIF" and not np.isin(like.alpha, (0, 255)).all():
        raise OutputError(f"{path}: GIF cannot hold partial transparency; use .png, .webp, .tif or .avif")


def _holds(known: Format, size: tuple[int, int]) -> bool:
    return max(size) <= known.longest_px and (known.largest_px is None or size[0] * size[1] <= known.largest_px)


def _check_metadata(path: Path, known: Format, like: Picture, *, strip: bool) -> None:
    if known.segment_bytes is None or strip:
        return
    iptc = None if like.iptc is None else iptc_resource(like.iptc)
    for kind, block, header in (("EXIF", like.exif, b""), ("XMP", like.xmp, XMP_HEADER), ("IPTC", iptc, IPTC_HEADER)):
        if block is not None and len(block) + len(header) > known.segment_bytes:
            raise OutputError(
                f"{path}: {known.name} cannot hold {len(block):,} bytes of {kind}; add --strip, or use .png"
            )


XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
IPTC_HEADER = b"Photoshop 3.0\0"
"""What XMP and IPTC segments of a JPEG file begin with."""


def _amount(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"


def _those(able: Callable[[Format], bool]) -> str:
    names = [known.extensions[0] for known in FORMATS if able(known)]
    if not names:
        return "a smaller size: no format holds that"
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
