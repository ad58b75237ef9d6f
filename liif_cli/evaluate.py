"""Scores: every method on every picture of every data set at every scale, by one protocol.

    methods (models through the engine, interpolation kernels)  x  data sets  x  scales  ->  scores  ->  rows of means

Models paint through the same engine as `liif upscale --direct`, so what is scored is what a user gets, before its
rounding to 8 bits. While a picture is painted the one before is scored and the next pair is read, each in its own
thread: the time and the memory of painting hold a little of theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast
from typing import Protocol as Interface

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from liif_cli import allocator, checkpoint, weights
from liif_cli.benchmarks import Dataset, Pair, Truth
from liif_cli.benchmarks.datasets import LEAST_SIDE
from liif_cli.data import rgb8
from liif_cli.engine import Engine, joined
from liif_cli.errors import InputError, LiifError, UsageError
from liif_cli.images import read
from liif_cli.metrics import Channel, psnr, ssim
from liif_cli.protocol import Protocol
from liif_cli.resize import matlab_bicubic, taps
from liif_cli.sizing import Size
from liif_cli.upscaler import (
    choose_device,
    choose_precision,
    default_bytes,
    parse_memory,
    within_process,
)
from liif_cli.weights.cache import sha256_of

Array = NDArray[Any]

KERNELS = ("nearest", "bicubic", "lanczos")
# Painted pictures that wait for their score: enough that painting never waits for long, few enough to fit in memory.
_WAITING = 2
_RGB_TO_LUMA = np.array([65.481, 128.553, 24.966]) / 255  # of levels; MATLAB's rgb2ycbcr


class Method(Interface):
    """Something that makes pictures larger."""

    name: str  # in tables
    kind: str  # "model" or "kernel"
    identity: str  # of equal methods equal, of others not

    def paint(self, low_res: Array, size: Size) -> Array:
        """(h, w, 3) uint8 to (H, W, 3) floats, nominally in [0, 1], not clamped."""


class ModelMethod:
    """A checkpoint in the engine; with ``ensemble`` the mean of its eight views, and a "+" behind its name, as the
    papers have it."""

    kind = "model"

    def __init__(
        self, name: str, identity: str, engine: Engine, memory_bytes: int | None = None, *, ensemble: bool = False
    ) -> None:
        self.name = f"{name}+" if ensemble else name
        self.engine = engine
        # With the machine's part in it, since scores tell seconds and memory as well.
        where = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else ""
        self.identity = f"{identity}:{self.computed}:{where}:{memory_bytes}{':ensemble' if ensemble else ''}"
        self.memory_bytes = memory_bytes
        self.ensemble = ensemble

    @property
    def computed(self) -> str:
        """In which precision, and on what: "float32 on cpu"."""
        return f"{str(self.engine.dtype).removeprefix('torch.')} on {self.engine.device.type}"

    def paint(self, low_res: Array, size: Size) -> Array:
        engine = self.engine
        if self.memory_bytes is None:
            engine.budget_bytes = default_bytes(engine.device)
        else:
            on_cpu = engine.device.type == "cpu"
            engine.budget_bytes = within_process(self.memory_bytes) if on_cpu else self.memory_bytes
        return joined(engine.open(low_res, ensemble=self.ensemble).bands(size), size[0])


class KernelMethod:
    """Interpolation: nearest, bicubic (MATLAB's, mirrored edges) or lanczos (three lobes)."""

    kind = "kernel"

    def __init__(self, name: str) -> None:
        self.name = name
        self.identity = f"kernel:{name}"

    def paint(self, low_res: Array, size: Size) -> Array:
        return self.enlarge(low_res / 255.0, size)

    def enlarge(self, image: Array, size: Size) -> Array:
        """(h, w) or (h, w, C) floats to ``size``, without rounding or clamping."""
        if self.name == "bicubic":
            enlarged: Array = matlab_bicubic(image, size)
            return enlarged
        if self.name == "lanczos":
            rows, columns = (taps(n, wanted, "lanczos3") for n, wanted in zip(image.shape, size, strict=False))
            return columns.apply(rows.apply(image, 0), 1)
        rows_of, columns_of = (
            np.floor((np.arange(wanted) + 0.5) * (n / wanted)).astype(int)
            for n, wanted in zip(image.shape, size, strict=False)
        )
        nearest: Array = image[rows_of[:, None], columns_of]
        return nearest

    def on_grey(self, truth: Array, low_res: Size) -> tuple[Array, Array]:
        """The recipe of the published tables for a picture of one channel, whose levels are taken as they are: the
        enlargement and the truth, (H, W, 3) floats, the channels alike."""
        levels = truth[..., 0].astype(np.float64)
        size = levels.shape[0], levels.shape[1]
        enlarged = np.floor(np.clip(self.enlarge(matlab_bicubic(levels, low_res), size), 0, 255) + 0.5)
        return np.repeat(enlarged[..., None] / 255, 3, axis=2), np.repeat(levels[..., None] / 255, 3, axis=2)

    def on_luma(self, truth: Array, low_res: Size) -> tuple[Array, Array]:
        """The recipe of the published tables (`protocol.py`): the enlargement and the truth, grey, (H, W, 3) floats.

        ``truth`` is (H, W, 3) uint8, cropped to what is painted from an input of ``low_res`` size. Grey means that the
        luma of what is returned is the 8-bit luma of the recipe, but for levels that luma does not have, below 16 and
        above 235, which the enlargement is free of here (0.005 dB on Set14 at x4).
        """
        levels = np.floor(truth @ _RGB_TO_LUMA + 16.5)
        size = levels.shape[0], levels.shape[1]
        enlarged = np.floor(np.clip(self.enlarge(matlab_bicubic(levels, low_res), size), 16, 235) + 0.5)
        return _grey(enlarged), _grey(levels)


def _grey(luma: NDArray[np.float64]) -> Array:
    """Levels of luma, 16 to 235, as the grey RGB picture in [0, 1] that has them."""
    return np.repeat(((luma - 16) / 219)[..., None], 3, axis=2)


def load_methods(
    models: Sequence[str],
    kernels: Sequence[str],
    *,
    device: str = "auto",
    precision: str = "float32",
    memory: str | int | None = None,
    ensemble: bool = False,
) -> list[Method]:
    """Models by name or path, in order, then kernels; "none" among the models stands for no model.

    With ``ensemble`` every model is there twice: as it is, and as the mean of its eight views.

    Raises ModelError for a model, UsageError for a kernel or where nothing is left to score.
    """
    if unknown := [name for name in kernels if name not in KERNELS]:
        raise UsageError(f"unknown baseline {unknown[0]!r}: use {', '.join(KERNELS)}, or none")
    chosen = choose_device(device)
    dtype = choose_precision(precision, chosen)
    limit = None if memory is None else parse_memory(memory)
    methods: list[Method] = []
    for model in dict.fromkeys(models):
        if model == "none":
            continue
        path = weights.resolve(model)
        file = path / checkpoint.RUN_MODEL if path.is_dir() else path
        if not file.is_file():
            checkpoint.read(path)  # which says what is wrong with it
        digest = ""
        while digest != (digest := sha256_of(file)):  # a run that goes on meanwhile may write a newer one
            loaded = checkpoint.load(path)
        name, identity = _name(model, path), f"model:{digest[:16]}"
        engine = Engine(loaded, chosen, dtype, 0)
        methods += [
            ModelMethod(name, identity, engine, limit, ensemble=way)
            for way in ((False, True) if ensemble else (False,))
        ]
    methods += [KernelMethod(name) for name in dict.fromkeys(kernels)]
    if not methods:
        raise UsageError("nothing to score: name a model with -m or a baseline with --baselines")
    taken: set[str] = set()
    for method in methods:  # two files of one name are told apart by a number
        numbered = (f"{method.name} ({number})" for number in itertools.count(2))
        method.name = next(name for name in (method.name, *itertools.islice(numbered, len(taken))) if name not in taken)
        taken.add(method.name)
    return methods


def _name(model: str, path: Path) -> str:
    entry = weights.registry().find(model)
    if entry is not None:
        return entry.name
    return path.stem if path.suffix in (".pth", ".pt", ".safetensors") else path.resolve().name


class Score(NamedTuple):
    """One method on one picture at one scale."""

    method: str
    kind: str
    dataset: str
    scale: float
    image: str
    psnr: float  # dB; infinite where nothing differs
    ssim: float
    lpips: float | None
    seconds: float  # painting, without reading and scoring
    peak_memory_bytes: int  # of the process while it painted, or of the GPU
    height: int
    width: int
    low_res: str  # "files", "matlab", "pil", "torch"; "luma" for kernels by the recipe of published tables


class Row(NamedTuple):
    """One method on one data set at one scale: means over its pictures, and the largest memory."""

    method: str
    kind: str
    dataset: str
    scale: float
    images: int
    psnr: float
    ssim: float
    lpips: float | None
    seconds: float
    peak_memory_bytes: int
    low_res: str


@dataclass(frozen=True)
class Work:
    """What is to be scored."""

    methods: Sequence[Method]
    datasets: Sequence[Dataset]
    scales: Sequence[float]
    protocol: Protocol = dataclasses.field(default_factory=Protocol)

    @property
    def count(self) -> int:
        """Scores there will be."""
        return len(self.methods) * len(self.scales) * sum(len(dataset.truths) for dataset in self.datasets)

    def check(self, least_side: int = LEAST_SIDE) -> None:
        """Look for what is missing or does not fit before any work is done, or leaves less than ``least_side`` pixels
        to score. Raises InputError."""
        for dataset in self.datasets:
            for scale in self.scales:
                dataset.check(scale, self.protocol, least_side)


class Painted(NamedTuple):
    """A picture on its way to its score."""

    method: Method
    dataset: Dataset
    scale: float
    truth: Truth
    pair: Pair
    image: Array | None  # None where only luma is wanted
    seconds: float
    peak_bytes: int


class Keeper(Interface):
    """Who wants enlargements, not scores alone."""

    def wants(self, dataset: Dataset, truth: Truth) -> bool:
        """Whether enlargements of a picture are wanted; they are painted even where their scores are known."""

    def take(self, painted: Painted, image: Array) -> None:
        """Take an enlargement, (H, W, 3) floats, not clamped."""


class _Unreadable(InputError):
    """A truth that cannot be read."""


class _Unfit(_Unreadable):
    """A truth that cannot be scored at one scale, being too small."""


Known = Mapping[str, Score]
Perceptual = Callable[[Array, Array], float]


def key(method: Method, dataset: Dataset, truth: Truth, scale: float, protocol: Protocol, lpips: bool) -> str:
    """What a score depends on, as one line of text."""
    low_res = dataset.low_res_file(truth, scale, protocol)
    parts = [
        method.identity,
        *_stamp(truth.path), *(() if low_res is None else _stamp(low_res)),
        f"{scale!r}", dataset.source(scale, protocol), dataset.rgb,
        *dataclasses.astuple(protocol),
        lpips,
    ]  # fmt: skip
    return json.dumps(parts)


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        stamp = path.stat()
    except OSError as error:
        raise _Unreadable(f"{path}: cannot be read any more: {error.strerror}; put it back, and begin again") from error
    return str(path.resolve()), stamp.st_size, stamp.st_mtime_ns


def evaluate(
    work: Work,
    *,
    known: Known | None = None,
    perceptual: Perceptual | None = None,
    started: Callable[[str], None] = lambda text: None,
    left_out: Callable[[Truth, InputError], None] = lambda truth, why: None,
    keepers: Sequence[Keeper] = (),
) -> Generator[tuple[str, Score], None, None]:
    """Score everything, data set by data set, scale by scale, picture by picture; yield each score with its key.

    ``known`` scores are not computed again, unless one of ``keepers`` wants the enlargement. ``started`` is told what
    is painted, ``left_out`` which picture of a folder is left out, since it cannot be read.

    Raises InputError, naming the picture, for what cannot be read of a benchmark, or be scored.
    """
    known = known or {}
    protocol = work.protocol
    cells = [(d, s, t) for d in work.datasets for s in work.scales for t in d.truths]
    waiting: deque[tuple[str, Score | Future[Score]]] = deque()
    last_read: tuple[Path, Array, bool] | None = None
    unreadable: set[Path | tuple[Path, float]] = set()  # at all, or at a scale

    def prepare(dataset: Dataset, scale: float, truth: Truth) -> Pair:
        nonlocal last_read
        if last_read is None or last_read[0] != truth.path:
            try:
                picture = read(truth.path)
                last_read = truth.path, rgb8(picture), picture.channels <= 2
            except InputError as error:
                raise _Unreadable(str(error)) from None
        try:
            return dataset.pair(truth, scale, protocol, last_read[1])._replace(grey=last_read[2])
        except InputError as error:
            raise _Unfit(str(error)) from None

    def jobs(dataset: Dataset, scale: float, truth: Truth) -> list[tuple[Method, str, Score | None]]:
        """Each method, its score's key, and the score where nothing is to be painted for it."""
        if unreadable & {truth.path, (truth.path, scale)} and not dataset.all_count:
            return []
        wanted = any(keeper.wants(dataset, truth) for keeper in keepers)
        try:
            keys = [key(method, dataset, truth, scale, protocol, perceptual is not None) for method in work.methods]
        except _Unreadable as error:
            if dataset.all_count:
                raise
            unreadable.add(truth.path)
            left_out(truth, error)
            return []
        return [(m, name, None if wanted else known.get(name)) for m, name in zip(work.methods, keys, strict=True)]

    with _pool() as reader, _pool() as scorer:
        ahead: Future[Pair] | None = None
        following = jobs(*cells[0]) if cells else []
        try:
            for number, (dataset, scale, truth) in enumerate(cells):
                current, pair = following, None
                if any(done is None for _, _, done in current):
                    try:
                        pair = ahead.result() if ahead is not None else prepare(dataset, scale, truth)
                    except _Unreadable as error:
                        if dataset.all_count:
                            raise
                        unreadable.add((truth.path, scale) if isinstance(error, _Unfit) else truth.path)
                        left_out(truth, error)
                        current = []
                ahead = None
                if number + 1 < len(cells):
                    following = jobs(*cells[number + 1])
                    if any(done is None for _, _, done in following):
                        ahead = reader.submit(prepare, *cells[number + 1])
                for method, name, done in current:
                    if done is not None:
                        same = done._replace(method=method.name, dataset=dataset.title, image=truth.name)
                        waiting.append((name, same))
                    else:
                        assert pair is not None
                        started(f"{dataset.title} x{scale:g} {truth.name}: {method.name}")
                        painted = _paint(method, dataset, scale, truth, pair, protocol, keepers)
                        waiting.append((name, scorer.submit(score, painted, protocol, perceptual)))
                    while waiting and (len(waiting) > _WAITING or _is_ready(waiting[0][1])):
                        yield _taken(waiting.popleft())
        except (LiifError, KeyboardInterrupt):
            while waiting:  # what is painted is not lost
                yield _taken(waiting.popleft())
            raise
        while waiting:
            yield _taken(waiting.popleft())


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _is_ready(item: Score | Future[Score]) -> bool:
    return isinstance(item, Score) or item.done()


def _taken(item: tuple[str, Score | Future[Score]]) -> tuple[str, Score]:
    return item[0], item[1].result() if isinstance(item[1], Future) else item[1]


def _paint(
    method: Method,
    dataset: Dataset,
    scale: float,
    truth: Truth,
    pair: Pair,
    protocol: Protocol,
    keepers: Sequence[Keeper],
) -> Painted:
    size = pair.high_res.shape[0], pair.high_res.shape[1]
    on_luma = isinstance(method, KernelMethod) and protocol.kernels_on_luma(protocol.channel(dataset.rgb))
    device = method.engine.device if isinstance(method, ModelMethod) else torch.device("cpu")
    with _PeakMemory(device) as memory:
        start = time.perf_counter()
        try:
            image = method.paint(pair.low_res, size)
        except LiifError as error:
            raise type(error)(f"{truth.path}, {method.name}: {error}") from None
        seconds = time.perf_counter() - start
    painted = Painted(method, dataset, scale, truth, pair, None if on_luma else image, seconds, memory.peak_bytes)
    for keeper in keepers:
        if keeper.wants(dataset, truth):
            keeper.take(painted, image)
    return painted


def score(painted: Painted, protocol: Protocol, perceptual: Perceptual | None = None) -> Score:
    """Compare an enlargement with the truth. Raises InputError naming the picture."""
    dataset, truth = painted.dataset, painted.truth
    channel = protocol.channel(dataset.rgb)
    border = protocol.shave(painted.scale, dataset.rgb)
    high_res = painted.pair.high_res
    source = painted.pair.source
    if painted.image is None:
        assert isinstance(painted.method, KernelMethod)
        low_res = painted.pair.low_res.shape[0], painted.pair.low_res.shape[1]
        if painted.pair.grey:
            (image, target), channel = painted.method.on_grey(high_res, low_res), "rgb"
        else:
            image, target = painted.method.on_luma(high_res, low_res)
        source = "luma"
    else:
        image, target = painted.image, high_res
        if protocol.rounding == "8bit":
            image = _as_saved(image)
    try:
        return Score(
            method=painted.method.name,
            kind=painted.method.kind,
            dataset=dataset.title,
            scale=painted.scale,
            image=truth.name,
            psnr=psnr(image, target, border=border, channel=cast(Channel, channel)),
            ssim=ssim(image, target, border=border, channel=cast(Channel, channel)),
            lpips=None if perceptual is None else perceptual(*_shaved(painted, border, protocol)),
            seconds=painted.seconds,
            peak_memory_bytes=painted.peak_bytes,
            height=high_res.shape[0],
            width=high_res.shape[1],
            low_res=source,
        )
    except LiifError as error:
        raise InputError(f"{truth.path}: {error}") from None


def _as_saved(image: Array) -> Array:
    rounded: Array = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return rounded


def _shaved(painted: Painted, border: int, protocol: Protocol) -> tuple[Array, Array]:
    """Both pictures in colour, as LPIPS wants them: floats in [0, 1] without their border."""
    size = painted.pair.high_res.shape[0], painted.pair.high_res.shape[1]
    image = painted.image if painted.image is not None else painted.method.paint(painted.pair.low_res, size)
    if protocol.rounding == "8bit":
        image = _as_saved(image) / np.float32(255)
    inside = (slice(border, size[0] - border), slice(border, size[1] - border))
    return np.clip(image, 0, 1)[inside].astype(np.float32), (painted.pair.high_res / np.float32(255))[inside]


def summarise(scores: Iterable[Score]) -> list[Row]:
    """Means by data set, scale and method, in the order in which they come."""
    groups: dict[tuple[str, float, str], list[Score]] = {}
    for each in scores:
        groups.setdefault((each.dataset, each.scale, each.method), []).append(each)
    rows = []
    for (dataset, scale, method), group in groups.items():
        perceptual = [each.lpips for each in group if each.lpips is not None]
        rows.append(
            Row(
                method=method,
                kind=group[0].kind,
                dataset=dataset,
                scale=scale,
                images=len(group),
                psnr=math.fsum(each.psnr for each in group) / len(group),
                ssim=math.fsum(each.ssim for each in group) / len(group),
                lpips=math.fsum(perceptual) / len(group) if len(perceptual) == len(group) else None,
                seconds=math.fsum(each.seconds for each in group) / len(group),
                peak_memory_bytes=max(each.peak_memory_bytes for each in group),
                low_res=group[0].low_res,
            )
        )
    return rows


def parse_scales(text: str) -> list[float]:
    """Factors above 1 out of "2,2.7,x4", in order, none twice. Raises UsageError."""
    scales = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*[x×]?(\d+(?:\.\d+)?)\s*", part)
        if match is None or not 1 < float(match[1]) <= 1000:
            raise UsageError(f"--scales {text!r}: write factors above 1, separated by commas, such as 2,2.7,30")
        scales.append(float(match[1]))
    return list(dict.fromkeys(scales))


class _PeakMemory:
    """The most memory held while a block runs: by the process, or by tensors on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak_bytes = 0

    def __enter__(self) -> _PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            allocator.give_back()  # what was kept of the method before
            with contextlib.suppress(OSError):  # Linux: the high-water mark begins anew
                Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.peak_bytes = int(torch.cuda.max_memory_allocated(self.device))
            return
        self.peak_bytes = int(psutil.Process().memory_info().rss)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                mark = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
                self.peak_bytes = max(self.peak_bytes, int(mark[1]) * 1024 if mark else 0)
