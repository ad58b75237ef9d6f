"""Pictures for training: any folder of them, decoded once, and the paper's samples drawn from it.

A sample (paper, section 4.1): a scale ``s`` drawn from a range, a square crop of ``round(low_res_side * s)`` pixels,
its bicubic reduction as the input, and some of the crop's pixels, by their coordinates, as the queries to answer. Of
the size-varied task (section 4.2): the square in the middle of a picture, reduced to the input and to a truth whose
side grows with the picture's number. For fitting one picture: its own pixels.

Drawing (random numbers, copies out of the memory-mapped store) is the host's work, in threads beside the training;
reducing, looking up the queries' colours and all arithmetic are the training device's, a batch at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from liif_cli.config import SampleRule
from liif_cli.errors import InputError, LiifError, OutputError
from liif_cli.files import atomic_path, cannot_write, is_file, is_folder, walk
from liif_cli.images import EXTENSIONS, Picture, read
from liif_cli.images.fit import eight_bits
from liif_cli.jpeg import through_jpeg
from liif_cli.resize import bicubic_reduce_batch, pil_bicubic
from liif_cli.synthetic import draw_sample

Size = tuple[int, int]  # (height, width)

DECODED_AT_ONCE = 16
STORE_KEPT_S = 24 * 3600
# Threads that draw batches: beside a CPU that trains one is enough, a GPU trains faster than one draws.
DRAWERS, GPU_DRAWERS = {"cpu": 1}, 4
SUFFIXES = EXTENSIONS - {".gif", ".apng"}  # which move, or have few colours


# Folders of benchmarks, as they are published, that are not for training: reduced copies (DIV2K_train_LR_bicubic,
# LRbicx2) and what is held out (DIV2K_valid_HR).
_REDUCED = re.compile(r"(.*_)?LR((bic|BI|BD|DN|_|x).*)?")
_SET_APART = re.compile(rf"{_REDUCED.pattern}|(?i:(.*_)?(val|valid|validation|test)(_.*)?)")
_SYSTEMS = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN"})  # closed, at the top of disks
RUN_STATE = "state.pth"  # what tells the folder of a training run
# Of stores: to be counted up when what is made of a file changes.
STORE_VERSION = 1


def set_apart(folder: Path) -> list[Path]:
    """The folders below that training passes over, unless one of them is named itself: those of benchmarks that are not
    for it, and training runs, whose comparisons are pictures."""
    return [path for path in _below(folder) if _is_called(path, _SET_APART) or is_file(path / RUN_STATE)]


def reduced_copies(folder: Path) -> list[Path]:
    """The folders below that hold reduced copies of a benchmark's pictures."""
    return [path for path in _below(folder) if _is_called(path, _REDUCED)]


def _below(folder: Path) -> Iterator[Path]:
    return (here / name for here, folders, _ in walk(folder) for name in folders)


def _is_called(path: Path, pattern: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(name) for name in (path.name, path.resolve().name))


def image_files(folder: Path, *, without: Sequence[Path] = ()) -> list[Path]:
    """All pictures below a folder, by their file names' endings, in a fixed order; of a file, the file.

    Left out are those below the folders ``without``, reduced copies beside their originals
    (img_001_SRF_2_LR.png and ..._HR.png), and what is hidden. Raises InputError where there are none, or a folder
    cannot be looked into.
    """
    folder = Path(folder)
    if is_file(folder):
        return [folder]
    if not is_folder(folder):
        raise InputError(f"{folder}: no such folder; name one with pictures in it")

    def refuse(error: OSError) -> None:  # a score or a model of some of the pictures would pass for one of all
        raise InputError(f"{error.filename}: cannot be looked into: {error.strerror}; allow it, or move it elsewhere")

    apart = set(without)
    files = []
    for here, folders, names in walk(folder, refuse):
        folders[:] = (
            name for name in folders if not name.startswith(".") and name not in _SYSTEMS and here / name not in apart
        )
        there = {Path(name).stem for name in names}
        found = (
            here / name
            for name in names
            if not name.startswith(".")
            and not (name.rpartition(".")[0].endswith("_LR") and f"{Path(name).stem.removesuffix('LR')}HR" in there)
        )
        files += [path for path in found if path.suffix.lower() in SUFFIXES and is_file(path)]
    files.sort()
    if not files:
        aside = f" outside of {apart.pop().name}, which is passed over unless it is named itself" if apart else ""
        raise InputError(f"{folder}: no pictures in it{aside}; looked for {', '.join(sorted(SUFFIXES))}")
    return files


class Batch(NamedTuple):
    """What a training step needs; values in [0, 1], float32."""

    low_res: Tensor  # (B, 3, side, side)
    coords: Tensor  # (B, Q, 2), (y, x) in [-1, 1]
    cell: Tensor  # (B, 2), relative (coords.py)
    high_res: Tensor  # (B, Q, 3)
    synthetic: Tensor  # (B,) bool: which samples are synthetic, not taken out of photographs


class PictureStore:
    """Decoded pictures, uint8, behind one another in a memory-mapped file."""

    def __init__(
        self, pixels: np.ndarray, offsets: Sequence[int], sizes: Sequence[Size], skipped: Sequence[str]
    ) -> None:
        self.pixels = pixels
        self.offsets = offsets
        self.sizes = sizes
        self.skipped = skipped  # one line a picture that is left out: its name and why

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: int) -> np.ndarray:
        """Picture ``number``: (H, W, 3) uint8, a view."""
        height, width = self.sizes[number]
        start = self.offsets[number]
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)


def open_store(
    folder: Path,
    cache: Path,
    *,
    smallest_side: int = 1,
    square: int | None = None,
    validation: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PictureStore:
    """Decode all pictures of ``folder``, or the one it names, into ``cache``, or find them there.

    Pictures that cannot be read or have a side under ``smallest_side``, and those of a ``validation`` that lies in the
    folder, are left out and said in ``skipped``. With ``square`` only the largest square in the middle of each picture
    is kept, reduced to that side. A change of any file's name, size or time makes a new store, as does a picture that
    can be read by now. ``progress`` is told (decoded, of how many).

    Raises InputError when no picture is left and OutputError when the cache cannot be written.
    """
    folder = Path(folder)
    apart = set_apart(folder) if is_folder(folder) else []
    files = image_files(folder, without=apart)
    held_out = [] if validation is None else _held_out(folder, files, validation)
    aside = set(held_out)
    files = [path for path in files if path not in aside]
    if not files:
        raise InputError(f"{folder}: all its pictures are scored (--val); name others to train on")
    root = folder if is_folder(folder) else folder.parent
    stamp = [[str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    source = [str(folder.resolve()), square]
    key = hashlib.sha256(json.dumps([STORE_VERSION, str(root.resolve()), square, stamp]).encode()).hexdigest()[:16]
    store, index = cache / f"{key}.rgb", cache / f"{key}.json"
    content = _index(index, store)
    # What could not be read may be readable by now: its reader is installed, or its drive is back.
    if content is not None and not any(isinstance(_decoded(root / name), np.ndarray) for name, _ in content["skipped"]):
        with contextlib.suppress(OSError):
            os.utime(index)  # still of use
    else:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _decode(root, files, square, store, index, progress, source)
            _drop_earlier(index, source)
        except (OSError, OutputError) as error:
            problem = error if isinstance(error, OutputError) else cannot_write(store, error)
            raise OutputError(f"{problem}; decoded pictures go to LIIF_CACHE, where that is set") from error
        content = json.loads(index.read_text())
    skipped = [
        f"{path.relative_to(root)}: held-out or reduced pictures of a benchmark, or a training run; name it itself to"
        " use it"
        for path in apart
    ]
    skipped += [f"{path.relative_to(root)}: what is scored is not trained on" for path in held_out]
    skipped += [why for _, why in content["skipped"]]
    offsets, sizes, start = [], [], 0
    for name, height, width, was in content["pictures"]:
        if min(was) >= smallest_side:
            offsets.append(start)
            sizes.append((height, width))
        else:
            skipped.append(f"{name}: {was[1]}x{was[0]} is smaller than the {smallest_side} pixels per side needed")
        start += height * width * 3
    if not sizes:
        smaller = "sample.low_res_side or sample.scale_max" if square is None else "sample.size_max"
        raise InputError(
            f"{folder}: no picture can be used, {skipped[-1]}; add larger pictures, or train with a smaller {smaller}"
        )
    # As a plain array: a memmap runs Python at every cut, which makes drawing half as slow again.
    return PictureStore(np.asarray(np.memmap(store, np.uint8, mode="r")), offsets, sizes, skipped)


def _held_out(folder: Path, files: Sequence[Path], validation: Path) -> list[Path]:
    """Those of a folder's files that a validation has, wherever links lead; none where it is all of the folder, or
    more: whoever scores what is trained on says so."""
    if folder.resolve().is_relative_to(validation.resolve()):
        return []
    scored = {path.resolve() for path in image_files(validation)}
    return [path for path in files if path.resolve() in scored]


def _index(index: Path, store: Path) -> dict[str, list[Any]] | None:
    """What a store holds; None where there is none, or not all of it."""
    try:
        content: dict[str, list[Any]] = json.loads(index.read_text())
        whole = sum(height * width * 3 for _, height, width, _ in content["pictures"]) == store.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if whole else None


def _decode(
    root: Path,
    files: Sequence[Path],
    square: int | None,
    store: Path,
    index: Path,
    progress: Callable[[int, int], None] | None,
    source: list[Any],
) -> None:
    def decode(path: Path) -> tuple[np.ndarray, Size] | str:
        pixels = _decoded(path)
        if isinstance(pixels, str):
            return pixels
        size = (pixels.shape[0], pixels.shape[1])
        return (pixels if square is None else middle_square(pixels, square)), size

    pictures: list[tuple[str, int, int, Size]] = []
    skipped: list[tuple[str, str]] = []
    with atomic_path(store, overwrite=True) as temporary, temporary.open("wb") as out, ThreadPoolExecutor() as pool:
        done = 0
        for first in range(0, len(files), DECODED_AT_ONCE):  # no more than these are in memory
            some = files[first : first + DECODED_AT_ONCE]
            for path, result in zip(some, pool.map(decode, some), strict=True):
                if isinstance(result, str):
                    skipped.append((str(path.relative_to(root)), result))
                else:
                    pixels, size = result
                    out.write(pixels.tobytes())
                    pictures.append((str(path.relative_to(root)), *pixels.shape[:2], size))
                done += 1
                if progress is not None:
                    progress(done, len(files))
        if not pictures:
            raise InputError(f"{root}: none of the {len(files)} pictures in it can be read; the first: {skipped[0][1]}")
    # The index last: a store without one does not count.
    with atomic_path(index, overwrite=True) as temporary:
        temporary.write_text(json.dumps({"source": source, "pictures": pictures, "skipped": skipped}))


def _decoded(path: Path) -> np.ndarray | str:
    """A picture (H, W, 3) uint8, or why there is none."""
    try:
        return rgb8(read(path))
    except LiifError as error:
        return str(error)


def _drop_earlier(index: Path, source: list[Any]) -> None:
    """Delete the stores of the same folder as it was before, and unfinished ones, but for those that were opened in the
    last day: somebody may still read from them, or write."""
    for other in index.parent.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > STORE_KEPT_S:
                other.unlink()
    for other in index.parent.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            old = time.time() - other.stat().st_mtime > STORE_KEPT_S
            if old and other != index and json.loads(other.read_text()).get("source") == source:
                other.with_suffix(".rgb").unlink(missing_ok=True)
                other.unlink()


def middle_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """The largest square in the middle of a picture, reduced to ``side`` pixels by PIL's bicubic."""
    height, width = pixels.shape[:2]
    length = min(height, width)
    top, left = (height - length) // 2, (width - length) // 2
    return pil_bicubic(np.ascontiguousarray(pixels[top : top + length, left : left + length]), (side, side))


def rgb8(picture: Picture) -> np.ndarray:
    """A picture as the protocol's data sets have them, (H, W, 3) uint8: grey becomes RGB, alpha is dropped."""
    pixels = picture.pixels
    if pixels.dtype == np.uint16:
        pixels = eight_bits(pixels)
    colours = pixels[..., :1] if pixels.shape[-1] < 3 else pixels[..., :3]
    return np.ascontiguousarray(np.broadcast_to(colours, (*pixels.shape[:2], 3)))


class Draw(NamedTuple):
    """A batch as the host draws it: what has to be copied to the device, and no more."""

    truths: Tensor  # (B, H, W, 3) uint8; what lies beyond a sample's size is padding
    sizes: list[Size]  # of the parts of ``truths`` that count
    sides: list[int]  # resized: pixels per side of each sample's truth
    extent: Tensor  # (B, 2) int64, of what is asked for: ``sizes``, or those they are resized to
    uniform: Tensor | None  # (B, Q) float32 in [0, 1): where in its stretch of pixels a query lies; None asks all
    qualities: list[int]  # of the JPEG file that each input was; 0 where it was none
    synthetic: Tensor  # (B,) bool: which samples are
    inputs: Tensor | None  # (B, side, side, 3) uint8, of those that were; the others' are the truths' reductions


class Sampler:
    """Draws batches from a store. The same ``seed`` and step give the same batch, whatever was drawn before, so that a
    resumed run needs no random state and each process of several can draw its own share."""

    def __init__(self, store: PictureStore, rule: SampleRule, *, seed: int = 0) -> None:
        if rule.kind == "picture" and len(store) != 1:
            raise InputError(f"one picture is fitted, and there are {len(store)}: name one file")
        self.store = store
        self.rule = rule
        self.seed = seed
        areas = np.array([height * width for height, width in store.sizes], dtype=np.float64)
        share = areas**rule.area_power
        self.cumulated = np.cumsum(share / share.sum())

    def batch(self, step: int, numbers: Sequence[int], device: torch.device) -> Batch:
        """Samples ``numbers`` (their places in the global batch) of one step, on ``device``."""
        return self.finish(self.draw(step, numbers, pin=device.type == "cuda"), device)

    def batches(self, step: int, numbers: Sequence[int], device: torch.device) -> Iterator[Batch]:
        """Batches from ``step`` on, without end. The next ones are drawn in threads while this one is used."""
        threads, pin = DRAWERS.get(device.type, GPU_DRAWERS), device.type == "cuda"
        with ThreadPoolExecutor(threads, thread_name_prefix="liif-draw") as pool:
            coming: deque[Future[Draw]] = deque()
            while True:
                while len(coming) <= threads:
                    coming.append(pool.submit(self.draw, step, numbers, pin=pin))
                    step += 1
                yield self.finish(coming.popleft().result(), device)

    def draw(self, step: int, numbers: Sequence[int], *, pin: bool = False) -> Draw:
        """The host's part of a batch."""
        rule = self.rule
        sizes, sides, uniform, qualities = [], [], [], []
        pad = (rule.largest_crop, rule.largest_crop) if rule.kind != "picture" else self.store.sizes[0]
        # NumPy's arrays, for a tensor of this size is filled in parallel: this thread would get a second team of OpenMP
        # threads, with which there are more than cores, and the training's team no longer waits actively.
        padded = np.zeros((len(numbers), *pad, 3), np.uint8)
        synthetic = np.zeros(len(numbers), bool)
        inputs = np.zeros((len(numbers), rule.low_res_side, rule.low_res_side, 3), np.uint8)
        for place, number in enumerate(numbers):
            draw = np.random.default_rng((self.seed, step, number))
            if rule.synthetic_share and draw.random() < rule.synthetic_share:
                synthetic[place] = True
                inputs[place], truth, side = self._synthetic(draw)
            else:
                truth, side = self._truth(draw)
            height, width = truth.shape[:2]
            padded[place, :height, :width] = truth
            sizes.append((height, width))
            sides.append(side)
            if rule.queries:
                uniform.append(draw.random(rule.queries, dtype=np.float32))
            compressed = rule.jpeg_share > 0 and draw.random() < rule.jpeg_share
            qualities.append(int(draw.integers(rule.jpeg_min, rule.jpeg_max + 1)) if compressed else 0)
        asked = [(rule.truth_side or side,) * 2 for side in sides] if rule.kind == "resized" else sizes
        extent = torch.tensor(asked)
        places = torch.from_numpy(np.stack(uniform)) if uniform else None
        seen = torch.from_numpy(inputs) if rule.synthetic_share else None
        truths, made = torch.from_numpy(padded), torch.from_numpy(synthetic)
        if pin:
            truths, extent, made = truths.pin_memory(), extent.pin_memory(), made.pin_memory()
            places = places if places is None else places.pin_memory()
            seen = seen if seen is None else seen.pin_memory()
        return Draw(truths, sizes, sides, extent, places, qualities, made, seen)

    def finish(self, drawn: Draw, device: torch.device) -> Batch:
        """The device's part of a batch."""
        rule = self.rule
        # From pinned memory, and sizes from the host: asking a GPU for them would mean waiting for it.
        truths = drawn.truths.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        extent = drawn.extent.to(device, non_blocking=True)
        synthetic = drawn.synthetic.to(device, non_blocking=True)
        if rule.kind == "picture":  # nothing is encoded
            low_res = torch.zeros(len(truths), 3, 1, 1, device=device)
        else:
            low_res = bicubic_reduce_batch(truths, [height for height, _ in drawn.sizes], rule.low_res_side)
            if drawn.inputs is not None:
                inputs = drawn.inputs.to(device, non_blocking=True).permute(0, 3, 1, 2)
                low_res = torch.where(synthetic[:, None, None, None], inputs.to(low_res), low_res)
            low_res = _compressed(low_res, drawn.qualities) / 255
        if rule.kind == "resized":
            truths = _resized(truths, drawn.sides, rule.truth_side)
        row, column = _places(extent, drawn.uniform, int(drawn.extent[0].prod()))
        values = truths.flatten(2).gather(2, (row * truths.shape[-1] + column)[:, None].expand(-1, 3, -1))
        coords = (2 * torch.stack([row, column], dim=-1) + 1) / extent[:, None] - 1
        cell = 2 * low_res.shape[-1] / extent  # low_res is square
        return Batch(low_res, coords.float(), cell.float(), values.permute(0, 2, 1).float() / 255, synthetic)

    def _truth(self, draw: np.random.Generator) -> tuple[np.ndarray, int]:
        """A picture or a crop of one, augmented, and the side its truth is to have."""
        rule = self.rule
        if rule.kind == "crops":
            side = round(rule.low_res_side * _scale(rule, draw))
            candidates = rule.candidates if rule.chosen == 1 or draw.random() < rule.chosen else 1
            crops = [self._crop(draw, side) for _ in range(candidates)]
            return self._augmented(draw, max(crops, key=_detail) if len(crops) > 1 else crops[0]), side
        number = self._number(draw)
        share = number / max(1, len(self.store) - 1)
        side = round(rule.size_min + (rule.size_max - rule.size_min) * share)
        return self._augmented(draw, self.store[number]), side

    def _synthetic(self, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        """What is drawn in place of a crop, its input and its truth augmented alike, and the truth's side."""
        low_res_side = self.rule.low_res_side
        side = round(low_res_side * _scale(self.rule, draw))
        sample = draw_sample(draw, low_res_side, side, lambda: self._crop(draw, side))
        view = draw.integers(2**63)
        low_res, truth = (self._augmented(np.random.default_rng(view), each) for each in sample)
        return low_res, truth, side

    def _crop(self, draw: np.random.Generator, side: int) -> np.ndarray:
        picture = self.store[self._number(draw)]
        top, left = (int(draw.integers(0, length - side + 1)) for length in picture.shape[:2])
        return picture[top : top + side, left : left + side]

    def _number(self, draw: np.random.Generator) -> int:
        return min(int(np.searchsorted(self.cumulated, draw.random(), side="right")), len(self.store) - 1)

    def _augmented(self, draw: np.random.Generator, truth: np.ndarray) -> np.ndarray:
        rule = self.rule.augment
        if rule == "all" and draw.random() < 0.5:
            truth = truth[::-1]
        if rule != "none" and draw.random() < 0.5:
            truth = truth[:, ::-1]
        if rule == "all" and draw.random() < 0.5:
            truth = truth.transpose(1, 0, 2)
        return truth


def _scale(rule: SampleRule, draw: np.random.Generator) -> float:
    if rule.scale_law == "log":
        return math.exp(draw.uniform(math.log(rule.scale_min), math.log(rule.scale_max)))
    return draw.uniform(rule.scale_min, rule.scale_max)


def _detail(crop: np.ndarray) -> float:
    """The mean difference of neighbouring pixels of a crop's green, in levels: near 0 for sky, high for foliage."""
    green = crop[..., 1].astype(np.int16)
    return float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean())


def _places(extent: Tensor, uniform: Tensor | None, pixels: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, (B, Q), of the pixels asked in samples of ``extent`` (B, 2); all of them, ``pixels`` in every
    sample, where nothing is drawn.

    One pixel out of each of Q equal stretches of a sample's pixels, row by row. Each pixel is as likely as any other,
    and where there are as many queries as pixels every one is asked exactly once, as drawing without replacement has
    it. Neighbouring queries read neighbouring codes, which caches like.
    """
    count = extent.prod(dim=1, keepdim=True)
    if uniform is None:
        pixel = torch.arange(pixels, device=extent.device).expand(len(extent), -1)
    else:
        number = torch.arange(uniform.shape[1], device=extent.device)
        drawn = uniform.to(extent.device, non_blocking=True)
        if extent.device.type != "mps":  # which has no float64; in float32 a place may be the next one
            drawn = drawn.double()
        pixel = ((number + drawn) * (count.to(drawn.dtype) / uniform.shape[1])).long()
        pixel = torch.minimum(pixel, count - 1)
    return pixel // extent[:, 1:], pixel % extent[:, 1:]


def _compressed(low_res: Tensor, qualities: Sequence[int]) -> Tensor:
    """Levels (B, 3, h, w) as they come out of JPEG files of these qualities; as they are where it is 0."""
    if not any(qualities):
        return low_res
    levels = low_res.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()
    seen = [through_jpeg(each, quality) if quality else each for each, quality in zip(levels, qualities, strict=True)]
    return torch.from_numpy(np.stack(seen)).to(low_res).permute(0, 3, 1, 2).contiguous()


def _resized(truths: Tensor, sides: Sequence[int], truth_side: int) -> Tensor:
    """Reduce each truth to its own side and, with ``truth_side``, enlarge it again: levels in float, padded."""
    full = truths.shape[-1]
    final = [truth_side or side for side in sides]
    out = torch.zeros(len(truths), 3, max(final), max(final), device=truths.device)
    for place, side in enumerate(sides):
        reduced = bicubic_reduce_batch(truths[place : place + 1], [full], side)
        if truth_side and truth_side != side:
            reduced = bicubic_reduce_batch(reduced.to(torch.uint8), [side], truth_side)
        out[place, :, : final[place], : final[place]] = reduced[0]
    return out
