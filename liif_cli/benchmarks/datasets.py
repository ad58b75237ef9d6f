"""Data sets on disk, and the pairs of low and high resolution that a protocol makes of them.

DIR/Set5/HR/baby.png          DIR/Set5/LR_bicubic/X2/babyx2.png             the layout of EDSR's benchmark archive;
                                                                            DIR/benchmark/Set5 is found as well
DIR/DIV2K_valid_HR/0801.png   DIR/DIV2K_valid_LR_bicubic/X2/0801x2.png      that of DIV2K; DIR/DIV2K as well
FOLDER/**/*.png, ...                                                        any pictures
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from liif_cli.data import image_files, reduced_copies, rgb8
from liif_cli.errors import InputError, UsageError
from liif_cli.files import is_file, is_folder
from liif_cli.images import read
from liif_cli.jpeg import through_jpeg
from liif_cli.protocol import MATLAB_SCALES, Protocol
from liif_cli.resize import matlab_bicubic, matlab_reduce, pil_bicubic, torch_bicubic

Array = NDArray[Any]
Size = tuple[int, int]  # (height, width)

LEAST_SIDE = 11  # of what is scored: SSIM's window


class Known(NamedTuple):
    """A data set of the literature."""

    title: str
    high_res: str  # folder of the truth, below DIR
    low_res: str  # folder that holds X2, X3, X4
    parent: str  # folder of DIR in which archives have it
    rgb: bool = False  # scored in RGB, with a wider border
    pictures: int = 0


def _edsr(title: str, pictures: int) -> Known:
    return Known(title, f"{title}/HR", f"{title}/LR_bicubic", "benchmark", pictures=pictures)


KNOWN = {
    "set5": _edsr("Set5", 5),
    "set14": _edsr("Set14", 14),
    "b100": _edsr("B100", 100),
    "urban100": _edsr("Urban100", 100),
    "div2k": Known("DIV2K", "DIV2K_valid_HR", "DIV2K_valid_LR_bicubic", "DIV2K", rgb=True, pictures=100),
}


class Truth(NamedTuple):
    """A picture at full resolution."""

    name: str
    path: Path


class Pair(NamedTuple):
    """What a method is given and what it is held against; both (H, W, 3) uint8."""

    low_res: Array
    high_res: Array  # cropped to the size that is painted
    source: str  # of low_res: "files", "matlab", "pil" or "torch"
    grey: bool = False  # whether the truth's file has one channel of colour


class Dataset(NamedTuple):
    """Pictures under one name."""

    title: str
    truths: Sequence[Truth]
    low_res: Path | None = None  # folder that may hold X2, X3, X4
    rgb: bool = False
    all_count: bool = True  # a benchmark's means are over all its pictures, a folder's over those that can be read
    expected: int = 0  # pictures that a benchmark has; 0 where that is not known
    passed_over: Sequence[Path] = ()  # folders below that by their names hold reduced copies, or lie beside HR

    @property
    def is_benchmark(self) -> bool:
        """Whether it is one of the literature and nothing of it is missing, nor added, so that its means can be held
        against published ones."""
        return 0 < self.expected == len(self.truths)

    def source(self, scale: float, protocol: Protocol) -> str:
        """Where low-resolution pictures come from: "files", or what makes them."""
        own = self._folder(scale, protocol)
        return "files" if own is not None else protocol.reduction(scale)

    def _folder(self, scale: float, protocol: Protocol) -> Path | None:
        if self.low_res is None or protocol.degradation != "paper" or scale not in MATLAB_SCALES:
            return None
        folder = self.low_res / f"X{scale:g}"
        return folder if is_folder(folder) else None

    def check(self, scale: float, protocol: Protocol, least_side: int = LEAST_SIDE) -> None:
        """Look at every picture's size, without decoding it; ``least_side`` must be left to score.

        Raises InputError for a file that is missing, for sizes that do not belong together, and for a scale too large
        to leave something to score.
        """
        border = protocol.shave(scale, self.rgb)
        too_small: list[InputError] = []
        for truth in self.truths:
            sides = _sides(truth.path)
            try:
                if sides is not None:
                    _check_side(truth, sides[0], scale, border, least_side)
            except InputError as error:
                # Of a folder some may be left out, when it comes to that, but not for one measure alone.
                too_small.append(error)
                if self.all_count or least_side > LEAST_SIDE or len(too_small) == len(self.truths):
                    raise too_small[0] from None
            if path := self.low_res_file(truth, scale, protocol):
                low = _sides(path)
                if sides is not None and low is not None:
                    _check_match(truth, path, sides, low, scale)

    def low_res_file(self, truth: Truth, scale: float, protocol: Protocol) -> Path | None:
        """The data set's own low-resolution picture; None where it has none at this scale. Raises InputError where that
        one is missing."""
        folder = self._folder(scale, protocol)
        if folder is None:
            return None
        names = f"{truth.path.stem}x{scale:g}", truth.path.stem
        paths = [folder / f"{name}{suffix}" for name in names for suffix in (".png", truth.path.suffix, ".bmp")]
        path = next(filter(is_file, paths), paths[0])
        if not is_file(path):
            raise InputError(
                f"{path}: missing, the low-resolution picture of {truth.path.name}; put it there, or add"
                " --degradation matlab, which makes the same ones"
            )
        return path

    def pair(self, truth: Truth, scale: float, protocol: Protocol, high_res: Array | None = None) -> Pair:
        """Read, or make, the two pictures of a pair. ``high_res`` is the truth if it was read already.

        Raises InputError as :meth:`check`, and for what cannot be read.
        """
        whole = read_rgb(truth.path) if high_res is None else high_res
        height, width = whole.shape[:2]
        _check_side(truth, min(height, width), scale, protocol.shave(scale, self.rgb), LEAST_SIDE)
        path = self.low_res_file(truth, scale, protocol)
        if path is not None:
            low_res = read_rgb(path)
            _check_match(truth, path, _sorted((height, width)), _sorted(low_res.shape[:2]), scale)
            source = "files"
        else:
            source = protocol.reduction(scale)
            low_res = reduce(whole, scale, source)
        if protocol.jpeg is not None:
            low_res = through_jpeg(low_res, protocol.jpeg)
        size = painted_size((low_res.shape[0], low_res.shape[1]), scale)
        if size[0] > height or size[1] > width:
            raise InputError(f"{path}: {_told(low_res.shape)} times {scale:g} is larger than {truth.path.name}")
        return Pair(low_res, np.ascontiguousarray(whole[: size[0], : size[1]]), source)


def find(name: str, folders: Sequence[Path]) -> Dataset:
    """The data set of a known name, looked for in ``folders`` in turn, or of a folder's path.

    Raises UsageError for a name that is neither, InputError where a known set is not there or a folder is empty.
    """
    known = KNOWN.get(name.lower())
    if known is not None:
        for folder in folders:
            for root in (folder, folder / known.parent):
                if is_folder(root / known.high_res):
                    return _known(known, root)
        if not is_folder(Path(name)):
            places = " or ".join(str(folder) for folder in folders)
            raise InputError(
                f"{name}: not here: there is no {known.high_res} in {places}; name the folder that has it with --data"
                " DIR or LIIF_DATA, or download it with --fetch"
            )
    path = Path(name)
    if not is_folder(path):
        raise UsageError(
            f"unknown data set {name!r}: known are {', '.join(KNOWN)}; the path of a folder with pictures works as well"
        )
    return _folder_set(path)


def _known(known: Known, root: Path) -> Dataset:
    low_res = root / known.low_res
    truths = _named(root / known.high_res, suffix=False)
    return Dataset(known.title, truths, low_res if is_folder(low_res) else None, known.rgb, expected=known.pictures)


def _folder_set(path: Path) -> Dataset:
    resolved = path.resolve()
    for known in KNOWN.values():
        # The folder of a known set, named by its path, is scored as that set.
        for ending in (known.high_res, known.high_res.partition("/")[0]):
            parts = Path(ending.lower()).parts
            if tuple(part.lower() for part in resolved.parts[-len(parts) :]) == parts:
                root = resolved.parents[len(parts) - 1]
                if is_folder(root / known.high_res):
                    return _known(known, root)
        if resolved.name.lower() == known.title.lower() and is_folder(resolved / known.high_res):
            return _known(known, resolved)
    if is_folder(path / "HR"):
        low_res = path / "LR_bicubic"
        beside = sorted(each for each in path.iterdir() if is_folder(each) and each.name not in ("HR", low_res.name))
        own = low_res if is_folder(low_res) else None
        return Dataset(resolved.name, _named(path / "HR", suffix=False), own, passed_over=beside)
    reduced = reduced_copies(path)
    return Dataset(resolved.name, _named(path, reduced, suffix=True), all_count=False, passed_over=reduced)


def _named(folder: Path, reduced: Sequence[Path] | None = None, *, suffix: bool) -> list[Truth]:
    files = image_files(folder, without=reduced_copies(folder) if reduced is None else reduced)
    truths = [Truth(path.relative_to(folder).as_posix() if suffix else path.stem, path) for path in files]
    known: dict[str, Path] = {}
    for truth in truths:
        if known.setdefault(truth.name, truth.path) != truth.path:
            raise InputError(f"{known[truth.name]} and {truth.path.name}: two pictures of one name; rename one of them")
    return truths


def read_rgb(path: Path) -> Array:
    """A file as (H, W, 3) uint8; grey becomes RGB. Raises InputError."""
    pixels: Array = rgb8(read(path))
    return pixels


def low_res_size(size: Size, scale: float) -> Size:
    """``floor(n / scale)`` a side; the billionth is for quotients that miss a whole number by their rounding."""
    return math.floor(size[0] / scale + 1e-9), math.floor(size[1] / scale + 1e-9)


def painted_size(low_res: Size, scale: float) -> Size:
    """``round(n * scale)`` a side: what is painted, and what the truth is cropped to."""
    return round(low_res[0] * scale), round(low_res[1] * scale)


def reduce(image: Array, scale: float, how: str) -> Array:
    """Make the low-resolution picture of (H, W, 3) uint8, by "matlab", "pil" or "torch"; uint8."""
    target = low_res_size((image.shape[0], image.shape[1]), scale)
    if how == "matlab" and scale == int(scale):
        return matlab_reduce(image, int(scale))
    size = painted_size(target, scale)
    cropped = image[: size[0], : size[1]].copy()  # torch takes none that cannot be written to
    if how == "matlab":
        return matlab_bicubic(cropped, target)
    if how == "pil":
        return pil_bicubic(cropped, target)
    planes = torch.from_numpy(cropped).permute(2, 0, 1)[None].float()
    reduced = torch_bicubic(planes, target)[0].permute(1, 2, 0).add_(0.5).floor_().clamp_(0, 255)
    result: Array = reduced.to(torch.uint8).contiguous().numpy()
    return result


def _sides(path: Path) -> Size | None:
    """The two sides of a picture, the shorter first, from its header; None where reading it will have to tell."""
    try:
        with Image.open(path) as image:
            return _sorted(image.size)
    except Exception:  # decoders raise anything; the reader explains what is wrong with a file
        return None


def _sorted(size: Sequence[int]) -> Size:
    return min(size[0], size[1]), max(size[0], size[1])


def _check_side(truth: Truth, side: int, scale: float, border: int, least: int) -> None:
    left = round(math.floor(side / scale + 1e-9) * scale) - 2 * border
    if left < least:
        raise InputError(
            f"{truth.path}: too small for x{scale:g}: of its shorter side of {side} pixels {max(0, left)} are left"
            f" without the border of {border}, and {least} are needed; use a smaller scale or larger pictures"
        )


def _check_match(truth: Truth, path: Path, sides: Size, low: Size, scale: float) -> None:
    expected = low_res_size(sides, scale)
    if low != expected:
        raise InputError(
            f"{path}: does not belong to {truth.path.name}: its sides are {low[0]} and {low[1]} pixels, and"
            f" {sides[0]} and {sides[1]} at x{scale:g} make {expected[0]} and {expected[1]}"
        )


def _told(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
