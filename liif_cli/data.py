"""Pictures for training: any folder of them, decoded once, and the paper's samples drawn from it.

A sample (paper, section 4.1): a scale ``s`` drawn from a range, a square crop of ``round(low_res_side * s)`` pixels,
its bicubic reduction as the input, and some of the crop's pixels, by their coordinates, as the queries to answer. Of
the size-varied task (section 4.2): the square in the middle of a picture, reduced to the input and to a truth whose
side grows with the picture's number. For fitting one picture: its own pixels.

Drawing (random numbers, copies out of the memory-mapped store) is the host's work, in threads beside the training;
reducing, looking up the queries' colours and all arithmetic are the training device's, a batch at a time. With CUDA
and room for the pictures the GPU cuts the crops out of them as well: it trains faster than a host does that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from liif_cli.config import SampleRule
from liif_cli.errors import InputError, LiifError, OutputError
from liif_cli.files import atomic_path, cannot_write, is_file, is_folder, walk
from liif_cli.images import EXTENSIONS, Picture, read
from liif_cli.images.fit import eight_bits
from liif_cli.jpeg import through_jpeg
from liif_cli.resize import bicubic_reduce_batch, pil_bicubic, reduce_by, reduction_matrices
from liif_cli.synthetic import draw_sample

Size = tuple[int, int]  # (height, width)
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]

DECODED_AT_ONCE = 16
STORE_KEPT_S = 24 * 3600
# Threads that draw batches: beside a CPU that trains one is enough, a GPU trains faster than one draws.
DRAWERS, GPU_DRAWERS = {"cpu": 1}, 4
# Pictures go into a GPU's memory where they take no more than this share of what is free, so many bytes at a time.
HELD_SHARE, HELD_AT_ONCE = 0.25, 2**26
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


class Crops(NamedTuple):
    """Which crops a batch of B is cut from: of each sample one of K candidates. Integers, in bytes of the store."""

    corner: np.ndarray  # (B, K): where a candidate's first pixel is
    stride: np.ndarray  # (B, K): from one row of its picture to the next
    candidates: np.ndarray  # (B,): how many of them count
    sides: np.ndarray  # (B,), in pixels
    views: np.ndarray  # (B, 3), 0 or 1: rows reversed, columns reversed, then transposed


class Draw(NamedTuple):
    """A batch as the host draws it: what has to be copied to the device, and no more."""

    truths: Tensor | None  # (B, H, W, 3) uint8; what lies beyond a sample's size is padding. None: a GPU cuts them out
    crops: Tensor | None  # (B, 2 * K + 5) int64, for that: ``Crops``, side by side
    sizes: list[Size]  # of the parts of ``truths`` that count
    sides: list[int]  # resized: pixels per side of each sample's truth
    extent: Tensor  # (B, 2) int64, of what is asked for: ``sizes``, or those they are resized to
    uniform: Tensor | None  # (B, Q) float32 in [0, 1): where in its stretch of pixels a query lies; None asks all
    qualities: list[int]  # of the JPEG file that each input was; 0 where it was none
    synthetic: Tensor  # (B,) bool: which samples are
    inputs: Tensor | None  # (B, side, side, 3) uint8, of those that were; the others' are the truths' reductions


class HeldPictures:
    """A store's pictures in a GPU's memory. It makes batches of crops out of them, the same ones as the host and many
    times faster."""

    def __init__(self, store: PictureStore, rule: SampleRule, device: torch.device, compiled: Compile) -> None:
        self.rule = rule
        self.pixels = torch.empty(len(store.pixels), dtype=torch.uint8, device=device)
        for start in range(0, len(store.pixels), HELD_AT_ONCE):
            part = store.pixels[start : start + HELD_AT_ONCE].copy()  # torch warns of what cannot be written to
            self.pixels[start : start + HELD_AT_ONCE] = torch.from_numpy(part)
        self._made = compiled(self._make)  # dozens of small operations, as a few kernels

    def batch(self, drawn: Draw) -> Batch:
        """What :meth:`Sampler.finish` makes of a draw whose crops are not cut yet."""
        device, rule = self.pixels.device, self.rule
        assert drawn.crops is not None
        matrices = reduction_matrices(drawn.sides, rule.low_res_side, rule.largest_crop, device)
        sent = (part.to(device, non_blocking=True) for part in (drawn.crops, drawn.extent, drawn.synthetic))
        uniform = None if drawn.uniform is None else drawn.uniform.to(device, non_blocking=True)
        crops, extent, synthetic = sent
        made: Batch = self._made(crops, matrices, extent, uniform, synthetic)
        return made

    def _make(
        self, crops: Tensor, matrices: Tensor, extent: Tensor, uniform: Tensor | None, synthetic: Tensor
    ) -> Batch:
        truths = self.cut(crops)
        low_res = reduce_by(truths, matrices) / 255
        return _asked(truths, low_res, extent, uniform, self.rule.largest_crop**2, synthetic)

    def cut(self, crops: Tensor) -> Tensor:
        """Crops (``Draw.crops``) in their views: (B, 3, pad, pad) uint8, zero beyond a crop's side; pad is that of the
        largest there may be."""
        pad, count = self.rule.largest_crop, (crops.shape[1] - 5) // 2
        corner, stride, (candidates, side, *views) = crops[:, :count], crops[:, count:-5], crops[:, -5:].T
        row, number = torch.arange(pad, device=crops.device)[:, None], torch.arange(count, device=crops.device)
        column, side = row.T, side[:, None, None]
        if count > 1:
            detail = self._detail(corner[..., None, None], stride[..., None, None], side[:, None])
            # The first of equals, as on the host.
            detail = torch.where(number < candidates[:, None], detail * count - number, -count)
            best = detail.argmax(dim=1, keepdim=True)
            corner, stride = corner.gather(1, best), stride.gather(1, best)
        rows_reversed, columns_reversed, transposed = (view[:, None, None] > 0 for view in views)
        down, across = torch.where(transposed, column, row), torch.where(transposed, row, column)
        down = torch.where(rows_reversed, side - 1 - down, down)
        across = torch.where(columns_reversed, side - 1 - across, across)
        place = corner[..., None] + down * stride[..., None] + across * 3
        channel = torch.arange(3, device=crops.device)[:, None, None]
        return self._pixels(place[:, None] + channel, ((row < side) & (column < side))[:, None])

    def _detail(self, corner: Tensor, stride: Tensor, side: Tensor) -> Tensor:
        """As the host's :func:`_detail`, of crops that begin at (B, K, 1, 1) corners and have (B, 1, 1, 1) sides."""
        row = torch.arange(self.rule.largest_crop, device=corner.device)[:, None]
        column = row.T
        green = corner + row * stride + column * 3 + 1
        down, across = (row < side - 1) & (column < side), (row < side) & (column < side - 1)
        here = self._pixels(green, down | across).to(torch.int32)
        below, beside = (self._pixels(green + step, inside).to(torch.int32)
                         for step, inside in ((stride, down), (3, across)))  # fmt: skip
        return ((below - here).abs() * down + (beside - here).abs() * across).sum(dim=(-2, -1))

    def _pixels(self, place: Tensor, inside: Tensor) -> Tensor:
        return self.pixels[place * inside] * inside


class Sampler:
    """Draws batches from a store. The same ``seed`` and step give the same batch, whatever was drawn before, so that a
    resumed run needs no random state and each process of several can draw its own share."""

    def __init__(
        self, store: PictureStore, rule: SampleRule, *, seed: int = 0, compiled: Compile | None = None
    ) -> None:
        """``compiled`` makes of a function one that is compiled. Without it crops are always the host's work."""
        if rule.kind == "picture" and len(store) != 1:
            raise InputError(f"one picture is fitted, and there are {len(store)}: name one file")
        self.store = store
        self.rule = rule
        self.seed = seed
        self.sizes = np.array(store.sizes)
        self.offsets = np.array(store.offsets)
        share = self.sizes.prod(axis=1).astype(np.float64) ** rule.area_power
        self.cumulated = np.cumsum(share / share.sum())
        self._compiled = compiled
        self._held: tuple[torch.device, HeldPictures | None] | None = None

    def batch(self, step: int, numbers: Sequence[int], device: torch.device) -> Batch:
        """Samples ``numbers`` (their places in the global batch) of one step, on ``device``."""
        cut = self.held_by(device) is None
        return self.finish(self.draw(step, numbers, pin=device.type == "cuda", cut=cut), device)

    def batches(self, step: int, numbers: Sequence[int], device: torch.device) -> Iterator[Batch]:
        """Batches from ``step`` on, without end. The next ones are drawn in threads while this one is used."""
        threads, pin = DRAWERS.get(device.type, GPU_DRAWERS), device.type == "cuda"
        cut = self.held_by(device) is None
        with ThreadPoolExecutor(threads, thread_name_prefix="liif-draw") as pool:
            coming: deque[Future[Draw]] = deque()
            while True:
                while len(coming) <= threads:
                    coming.append(pool.submit(self.draw, step, numbers, pin=pin, cut=cut))
                    step += 1
                yield self.finish(coming.popleft().result(), device)

    def held_by(self, device: torch.device) -> HeldPictures | None:
        """The pictures in the device's memory, where crops are cut out of them there; None where the host does it."""
        if self._held is None or self._held[0] != device:
            held = None
            rule, compiled = self.rule, self._compiled
            plain = rule.kind == "crops" and not rule.synthetic_share and not rule.jpeg_share
            if compiled is not None and plain and device.type == "cuda":
                room = torch.cuda.mem_get_info(device)[0] * HELD_SHARE
                if self.store.pixels.nbytes <= room:
                    held = HeldPictures(self.store, rule, device, compiled)
            self._held = device, held
        return self._held[1]

    def draw(self, step: int, numbers: Sequence[int], *, pin: bool = False, cut: bool = True) -> Draw:
        """The host's part of a batch; without ``cut`` the crops are left to the device."""
        rule = self.rule
        sizes, sides = [], []
        count, candidates = max(numbers) + 1, rule.candidates if rule.kind == "crops" else 1
        # One row of random numbers for each sample of the batch, so that a share of it has those of its places.
        table = np.random.default_rng((self.seed, step, 0, 1)).random((count, 8 + 3 * candidates))[list(numbers)]
        scale, chosen, synthetic, compressed, quality, *views = table[:, :8].T
        picture, top, left = table[:, 8:].reshape(len(table), 3, candidates).transpose(1, 0, 2)
        number = np.minimum(np.searchsorted(self.cumulated, picture, side="right"), len(self.store) - 1)
        made = synthetic < rule.synthetic_share
        # What letters are drawn on is a crop as it comes.
        several = (chosen < rule.chosen) & ~made
        crops = self._crops(scale, several, np.stack(views, axis=1), number, top, left)
        lossy = compressed < rule.jpeg_share
        qualities = np.where(lossy, rule.jpeg_min + (quality * (rule.jpeg_max + 1 - rule.jpeg_min)).astype(int), 0)
        inputs = np.zeros((len(table), rule.low_res_side, rule.low_res_side, 3), np.uint8)
        # NumPy's arrays, for a tensor of this size is filled in parallel: this thread would get a second team of OpenMP
        # threads, with which there are more than cores, and the training's team no longer waits actively.
        truths, places_of_crops = None, None
        if cut:
            pad = (rule.largest_crop, rule.largest_crop) if rule.kind != "picture" else self.store.sizes[0]
            padded = np.zeros((len(table), *pad, 3), np.uint8)
            for place, in_batch in enumerate(numbers):
                if rule.kind == "crops":
                    truth, side = self._cut(crops, place), int(crops.sides[place])
                else:
                    truth, side = self.store[number[place, 0]], self._side(number[place, 0])
                if made[place]:
                    draw = np.random.default_rng((self.seed, step, 1 + in_batch))
                    seen, truth = draw_sample(draw, rule.low_res_side, side, lambda crop=truth: crop)  # type: ignore[misc]
                    inputs[place] = _viewed(seen, crops.views[place])
                truth = _viewed(truth, crops.views[place])
                height, width = truth.shape[:2]
                padded[place, :height, :width] = truth
                sizes.append((height, width))
                sides.append(side)
            truths = torch.from_numpy(padded)
        else:
            sides = crops.sides.tolist()
            sizes = [(side, side) for side in sides]
            places_of_crops = torch.from_numpy(np.column_stack(crops))
        asked = [(rule.truth_side or side,) * 2 for side in sides] if rule.kind == "resized" else sizes
        extent, synthetic_ones = torch.tensor(asked), torch.from_numpy(made)
        places = None
        if rule.queries:
            uniform = np.random.default_rng((self.seed, step, 0, 2)).random((count, rule.queries), dtype=np.float32)
            places = torch.from_numpy(uniform[list(numbers)])
        shown = torch.from_numpy(inputs) if rule.synthetic_share else None

        def kept(part: Tensor | None) -> Tensor | None:
            return part.pin_memory() if pin and part is not None else part

        return Draw(
            kept(truths),
            kept(places_of_crops),
            sizes,
            sides,
            cast(Tensor, kept(extent)),
            kept(places),
            qualities.tolist(),
            cast(Tensor, kept(synthetic_ones)),
            kept(shown),
        )

    def finish(self, drawn: Draw, device: torch.device) -> Batch:
        """The device's part of a batch."""
        rule, held = self.rule, self.held_by(device)
        if held is not None and drawn.crops is not None:
            return held.batch(drawn)
        assert drawn.truths is not None
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
        uniform = None if drawn.uniform is None else drawn.uniform.to(device, non_blocking=True)
        return _asked(truths, low_res, extent, uniform, int(drawn.extent[0].prod()), synthetic)

    def _side(self, number: int) -> int:
        """Of resized: pixels a side of a picture's truth."""
        share = number / max(1, len(self.store) - 1)
        return round(self.rule.size_min + (self.rule.size_max - self.rule.size_min) * share)

    def _crops(
        self,
        scale: np.ndarray,
        several: np.ndarray,
        views: np.ndarray,
        number: np.ndarray,
        top: np.ndarray,
        left: np.ndarray,
    ) -> Crops:
        """What a batch is cut from, by numbers from [0, 1): of ``several`` crops, (B,) bool, or of the first; the
        pictures' ``number``, and ``top`` and ``left``, (B, K)."""
        rule = self.rule
        if rule.scale_law == "log":
            scale = rule.scale_min * (rule.scale_max / rule.scale_min) ** scale
        else:
            scale = rule.scale_min + (rule.scale_max - rule.scale_min) * scale
        sides = np.rint(rule.low_res_side * scale).astype(np.int64)
        height, width = self.sizes[number].transpose(2, 0, 1)
        top, left = ((place * (length - sides[:, None] + 1)).astype(np.int64)
                     for place, length in ((top, height), (left, width)))  # fmt: skip
        candidates = np.where(several, number.shape[1], 1)
        may = {"all": (1, 1, 1), "mirror": (0, 1, 0), "none": (0, 0, 0)}[rule.augment]
        corner = self.offsets[number] + 3 * (top * width + left)
        return Crops(corner, 3 * width, candidates, sides, (views < 0.5) * np.array(may))

    def _cut(self, crops: Crops, place: int) -> np.ndarray:
        """A sample's crop, a view of the store."""
        side = crops.sides[place]
        candidates = [
            np.ndarray((side, side, 3), np.uint8, self.store.pixels, corner, (stride, 3, 1))
            for corner, stride in zip(crops.corner[place], crops.stride[place], strict=True)
        ][: crops.candidates[place]]
        return max(candidates, key=_detail) if len(candidates) > 1 else candidates[0]


def _viewed(picture: np.ndarray, view: np.ndarray) -> np.ndarray:
    """A picture in one of its eight views (``Crops.views``)."""
    rows_reversed, columns_reversed, transposed = view
    picture = picture[::-1] if rows_reversed else picture
    picture = picture[:, ::-1] if columns_reversed else picture
    return picture.transpose(1, 0, 2) if transposed else picture


def _detail(crop: np.ndarray) -> int:
    """The sum of the differences of neighbouring pixels of a crop's green: near 0 for sky, high for foliage."""
    green = crop[..., 1].astype(np.int16)
    return int(np.abs(np.diff(green, axis=0)).sum() + np.abs(np.diff(green, axis=1)).sum())


def _asked(
    truths: Tensor, low_res: Tensor, extent: Tensor, uniform: Tensor | None, pixels: int, synthetic: Tensor
) -> Batch:
    """The batch whose queries ask for some of the truths' pixels, or for all ``pixels`` of every one."""
    row, column = _places(extent, uniform, pixels)
    values = truths.flatten(2).gather(2, (row * truths.shape[-1] + column)[:, None].expand(-1, 3, -1))
    coords = (2 * torch.stack([row, column], dim=-1) + 1) / extent[:, None] - 1
    cell = 2 * low_res.shape[-1] / extent  # low_res is square
    return Batch(low_res, coords.float(), cell.float(), values.permute(0, 2, 1).float() / 255, synthetic)


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
        # MPS has no float64; in float32 a place may be the next one.
        drawn = uniform if extent.device.type == "mps" else uniform.double()
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
