"""The engine: a picture goes in once and is painted out at any size, band by band, in memory that a budget bounds.

    image --encode--> features --fold--> codes --paint--> bands of rows, top to bottom
            |                     |                |
            tiles with a halo     bands of rows    tiles of a band, a thread each

A plan turns the budget into the height of a band and the sides of a tile. Encoding in tiles is exact because each tile
is read with the encoder's receptive field around it; painting in tiles is exact by nature. So pixels do not depend on
the plan, but for the rounding of sums that are added in another order, and for encoders that pool over the whole image
(RCAN's).
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liif_cli import coords
from liif_cli.allocator import reused_memory
from liif_cli.errors import InputError, LiifError, MemoryBudgetError, ModelError, RangeError
from liif_cli.models import Field, Model, Window
from liif_cli.models.base import memory_format
from liif_cli.out_of_memory import is_out_of_memory
from liif_cli.resize import BandResampler
from liif_cli.sizing import Box, Size, box_sides, whole

Array = NDArray[Any]

MIB = 2**20
FLOAT_BYTES = 4
# What one painted band may hold: enough rows to keep all threads busy, little enough to begin and to report early.
BAND_PIXELS = 2**20
GPU_BAND_PIXELS = 2**22
# Tiles of a band painted by one thread: wide enough that reading the codes costs nothing beside painting them. Their
# tables grow with both sides.
TILE_COLUMNS, TILE_ROWS = 512, 2048
# What a painter works in: on a CPU each thread's blocks and tables; on a GPU four hidden states of a pixel, and all
# pixels of a band at once where they are not more values than this.
CPU_PAINTER_BYTES = 24 * MIB
GPU_PAINTER_STATES, GPU_PAINTER_VALUES = 4, 2**28
# Sides of the encoder's tiles, the halo not counted: wide rather than high, since painting begins when the first ones
# are encoded. Below the least, a tile is mostly halo.
LARGEST_TILE = (1024, 2048)
GPU_LARGEST_TILE = (2048, 4096)
LEAST_TILE = 16
# Threads that resample what a GPU paints.
RESAMPLERS = min(8, os.cpu_count() or 1)
# Resampling: blocks of weights of an output column; taps, and what makes them, of an output row or column.
RESAMPLED_COLUMN_BYTES, RESAMPLED_LINE_BYTES = 300, 220
# Values of one tensor that libraries which count in 32 bits can still address.
MOST_VALUES = 2**31 - 1
# What folding a code costs beside encoding it, about, and how often a pixel of an image that is held for windows
# is painted again.
FOLD_WORK, WINDOWS = 0.06, 4
# Rows of codes folded at once, where features are held: neighbouring bands fold some rows twice, which is nothing with
# so many and wastes time with fewer than the second number. Below it, held features give way.
ENOUGH_CODE_ROWS, HELD_CODE_ROWS = 128, 16


class Region(NamedTuple):
    """Whole pixels of an image."""

    top: int
    bottom: int
    left: int
    right: int

    def contains(self, other: Region) -> bool:
        """Whether all of another region lies in this one."""
        rows = self.top <= other.top and other.bottom <= self.bottom
        return rows and self.left <= other.left and other.right <= self.right


class View(NamedTuple):
    """One of the eight ways to look at an image: transposed or not, then turned over along rows, along columns."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def of_image(self, image: Array) -> Array:
        """The image (H, W, C) as it is seen; shares its memory."""
        seen = image.transpose(1, 0, 2) if self.transposed else image
        return seen[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]

    def of_axes(self, rows: coords.Axis, columns: coords.Axis, seen: Size) -> tuple[coords.Axis, coords.Axis]:
        """Axes over the image to axes over the image as it is seen, of size ``seen``, that lie on the same pixels."""
        first, second = (columns, rows) if self.transposed else (rows, columns)
        if self.rows_reversed:
            first = first._replace(position=seen[0] - 1 - first.position)
        if self.columns_reversed:
            second = second._replace(position=seen[1] - 1 - second.position)
        return first, second


PLAIN = (View(),)
ALL_VIEWS = tuple(View(*(bool(number & bit) for bit in (4, 2, 1))) for number in range(8))


class Plan(NamedTuple):
    """How much is done at once. Every number is a bound, not a share of the picture."""

    tile: Size  # sides of an encoder tile, without its halo
    code_rows: int  # rows of codes folded at once
    band_rows: int  # painted rows of a band
    hold_features: bool  # whether all features that a painting needs stay in memory after they were computed

    def halved(self) -> Plan | None:
        """The next smaller plan, or None below the floor."""
        smaller = Plan(
            (
                min(self.tile[0], max(LEAST_TILE, self.tile[0] // 2)),
                min(self.tile[1], max(LEAST_TILE, self.tile[1] // 2)),
            ),
            max(1, self.code_rows // 2),
            max(1, self.band_rows // 2),
            False,
        )
        return None if smaller == self else smaller


class Task(NamedTuple):
    """A picture to paint, and what becomes of it."""

    image: Size
    box: Box  # the window of the image that is painted
    painted: Size  # its size
    output: Size  # what is wanted
    # Of each axis the part of the painted pixels that the output is resampled from, or None where it is all of them as
    # they are. What lies around it is for the taps at its edges.
    windows: tuple[tuple[float, float] | None, tuple[float, float] | None]


def make_task(model: Model, image: Size, output: Size, box: Box | None = None, farthest: float = math.inf) -> Task:
    """What to paint for an ``output`` of a ``box`` of an ``image``.

    The network is asked for the output's own pixels, save where that would be wrong: a reduced axis is painted at the
    input's size and then reduced with an antialiasing filter, since a network's point samples would alias; a
    single-scale network paints at its own scale and is resampled to any other; and beyond the scale ``farthest`` no
    network knows more than it does there, so the rest of the way goes by bicubic interpolation.

    There the window is painted with as much around it as the resampling reads, on the grid of the whole image, so that
    windows are parts of the same picture to their edges.

    Raises InputError for a box that is empty or not inside the image.
    """
    box = box or whole(image)
    if not (0 <= box.top < box.bottom <= image[0] and 0 <= box.left < box.right <= image[1]):
        raise InputError(
            f"the box {box.left:g},{box.top:g},{box.right:g},{box.bottom:g} (left, top, right, bottom) is not inside"
            f" the picture of {image[1]}x{image[0]} pixels"
        )
    sides = box_sides(image, box)
    spans = (box.top, box.bottom), (box.left, box.right)
    rows, columns = (
        _stretch(model.native_scale, farthest, *axis) for axis in zip(image, spans, sides, output, strict=True)
    )
    area = Box(rows.span[0], columns.span[0], rows.span[1], columns.span[1])
    return Task(image, area, (rows.painted, columns.painted), output, (rows.window, columns.window))


class _Stretch(NamedTuple):
    """One axis of a task."""

    span: tuple[float, float]
    painted: int
    window: tuple[float, float] | None


def _stretch(
    native: int | None, farthest: float, length: int, span: tuple[float, float], side: float, wanted: int
) -> _Stretch:
    """What to paint for so many ``wanted`` pixels of a ``span``, of the length ``side``, of an axis."""
    if native is not None:
        # Its pixels are where they are: between them there is only interpolation.
        as_it_is = wanted == side * native and all(float(edge * native).is_integer() for edge in span)
    else:
        as_it_is = side <= wanted <= side * farthest + 0.5  # by the half pixel a size may be rounded up nothing is lost
    if as_it_is:
        return _Stretch(span, wanted, None)
    # What is painted of a pixel: the same number wherever the window lies, since it begins and ends with a pixel.
    each = native or (farthest if wanted > side else 1)
    start, stop = _reached(length, span, max(side / wanted, 1 / each))
    painted = math.ceil((stop - start) * each)
    first, last = ((edge - start) * painted / (stop - start) for edge in span)
    return _Stretch((start, stop), painted, (first, last))


class Costs(NamedTuple):
    """Bytes, by what they grow with. Checked against the measured peak by a test."""

    tile_px: int  # an input pixel of an encoder tile, halo included
    feature: int  # features of an input pixel
    code: int  # folded codes of an input pixel
    painted: int  # a painted pixel of a band
    fixed: int  # the network's weights and, on a CPU, the painters' working sets
    state: int  # on a GPU what its painter holds of a painted pixel ...
    most_states: int  # ... and of all pixels of a band together, at most


def costs(model: Model, dtype: torch.dtype, threads: int, *, gpu: bool) -> Costs:
    """The model of bytes a plan is made with."""
    element = dtype.itemsize
    encoder = model.encoder
    scale = encoder.scale
    weights = sum(parameter.numel() for parameter in model.parameters()) * element
    feature = encoder.out_dim * scale * scale * element
    return Costs(
        # The image as floats too. On a CPU the holes that freed tensors leave are a little too small for the next ones
        # of their size, which doubles what a chain of layers takes.
        tile_px=encoder.held_channels * element * (1 if gpu else 2) + 8 * FLOAT_BYTES,
        feature=feature,
        # The codes, and the features they are folded from, cut out; on a GPU what a convolution works in.
        code=model.code_values * element * (2 if gpu else 1) + feature,
        painted=3 * FLOAT_BYTES * 3,  # the band, the one before it on its way out, and the rounding of it
        fixed=2 * weights + (0 if gpu else threads * CPU_PAINTER_BYTES),
        state=GPU_PAINTER_STATES * max(256, model.code_values) * element if gpu else 0,
        most_states=GPU_PAINTER_VALUES * element,
    )


def make_plan(
    model: Model,
    dtype: torch.dtype,
    task: Task,
    budget_bytes: int,
    *,
    gpu: bool,
    threads: int,
    views: int = 1,
    hold_image: bool = False,
) -> Plan:
    """Turn a budget into a plan, the one with the least work of those looked at. Features and codes are held for each
    of so many ``views``; with ``hold_image`` not the features of the box alone are worth holding, but those of the
    whole image.

    Raises MemoryBudgetError, naming the numbers, where even the smallest plan needs more.
    """
    price = costs(model, dtype, threads, gpu=gpu)
    halo = model.encoder.halo_px
    image = task.image
    width = min(image[1], math.ceil(task.box.right) - math.floor(task.box.left) + 4)
    height = min(image[0], math.ceil(task.box.bottom) - math.floor(task.box.top) + 4)
    held = image if hold_image else (height, width)
    ratio = task.painted[0] / (task.box.bottom - task.box.top)
    # Where painted rows are resampled, a band is as large as what it becomes; it waits resampled along its width.
    first, last = task.windows[0] or (0, task.painted[0])
    becomes = task.output[0] / max(1, last - first)
    row_pixels = max(task.painted[1], task.output[1], math.ceil(task.output[1] * becomes))
    painted_states = task.painted[1] * price.state
    # What waits for its taps there, twice while it is moved, and no more than there is.
    waiting = math.ceil(2 * min(4 * max(1, 1 / becomes), task.painted[0])) * task.output[1] * 3 * FLOAT_BYTES
    # The last row lets go of all that waited for the rows after it, but of no more than there is.
    released = max(0, min(math.ceil(2 * becomes), task.output[0] - math.ceil(becomes)))
    at_the_end = released * task.output[1] * price.painted
    weights = RESAMPLED_COLUMN_BYTES * task.output[1] + RESAMPLED_LINE_BYTES * sum(task.output)
    resampled = 0 if task.windows == (None, None) else waiting + at_the_end + weights

    def read(tile: Size) -> Size:
        return min(tile[0] + 2 * halo, image[0]), min(tile[1] + 2 * halo, image[1])

    def beside_tile(plan: Plan) -> int:
        """Bytes that following a plan takes, but for what encodes a tile."""
        # Of the windows of an image that is held the largest counts.
        rows, columns = held if plan.hold_features else (height, width)
        rows = min(plan.code_rows + 3, rows)
        band = min(plan.band_rows, math.ceil(plan.code_rows * ratio))
        return (
            price.fixed
            + resampled
            + views * (math.prod(held) if plan.hold_features else rows * columns) * price.feature
            + views * rows * columns * price.code
            + band * row_pixels * price.painted
            # One row is painted at once, however long it is.
            + max(painted_states, min(band * painted_states, price.most_states))
        )

    def best_tile(area: Size, room: int) -> tuple[int, Size] | None:
        """The tile, of those that so many bytes leave room for, with which encoding an area reads about the fewest
        pixels; after their number."""
        largest = GPU_LARGEST_TILE if gpu else LARGEST_TILE
        pixels = min(room // price.tile_px, MOST_VALUES // model.encoder.held_channels)
        found = []
        for rows in _parts(area[0], min(largest[0], area[0]), LEAST_TILE):
            # The widest that fits, then no wider than as many equal ones must be.
            across = pixels // read((rows, 0))[0]
            columns = min(area[1], largest[1], across if across >= image[1] else across - 2 * halo)
            if columns >= min(LEAST_TILE, area[1]):
                columns = -(-area[1] // -(-area[1] // columns))
                count = -(-area[0] // rows) * -(-area[1] // columns)
                found.append((count * math.prod(read((rows, columns))), (rows, columns)))
        # The smallest of those that are about as good: less memory, and painting begins sooner.
        good = [(math.prod(tile), work, tile) for work, tile in found if work <= 1.03 * min(found)[0]]
        return min(good)[1:] if good else None

    def candidates(band_rows: int) -> Iterator[tuple[float, Plan]]:
        """Plans within the budget, with the work they make, in pixels encoded."""
        enough = min(height, max(ENOUGH_CODE_ROWS, math.ceil(band_rows / ratio)))
        for hold, most, least in ((True, enough, min(height, HELD_CODE_ROWS)), (False, height, 1)):
            for code_rows in _parts(height, most, least):
                if min(code_rows + 3, height) * width * model.code_values > MOST_VALUES and code_rows > 1:
                    continue
                plan = Plan((0, 0), code_rows, band_rows, hold)
                area = held if hold else (min(code_rows + 3, height), width)
                best = best_tile(area, budget_bytes - beside_tile(plan))
                if best is None:
                    continue
                # Of an image that is held for many windows this one pays for its share.
                times = (
                    height * width / math.prod(held) / (WINDOWS if hold_image else 1) if hold else height / code_rows
                )
                folded_twice = 2 / min(code_rows, enough) * height * width
                yield best[0] * times + FOLD_WORK * folded_twice, plan._replace(tile=best[1])

    band_rows = (GPU_BAND_PIXELS if gpu else BAND_PIXELS) // row_pixels
    if gpu and price.most_states > budget_bytes // 2:  # the codes, and the features, shall have room beside
        band_rows = min(band_rows, budget_bytes // 2 // painted_states)
    band_rows = max(1, band_rows)
    while not (plans := list(candidates(band_rows))):
        if band_rows == 1:
            tile = LEAST_TILE, LEAST_TILE
            least = beside_tile(Plan(tile, 1, 1, hold_features=False)) + math.prod(read(tile)) * price.tile_px
            raise MemoryBudgetError(
                f"{task.output[1]} pixels per row need at least {-(-least // MIB)} MiB to work in, and the budget"
                f" leaves {max(0, budget_bytes) // MIB} MiB; raise --memory or choose a smaller output"
            )
        band_rows //= 2
    # The first of those that are about as good: features that are held come first.
    return next(plan for work, plan in plans if work <= 1.01 * min(plans)[0])


def _parts(length: int, most: int, least: int) -> Iterator[int]:
    """Equal parts that a length may be cut into, from ``most`` down to ``least``: by one more at first, by a tenth more
    later."""
    count = -(-length // most)
    while (part := -(-length // count)) >= min(least, length):
        yield part
        if part == 1:
            break
        count = max(count + 1, int(count * 1.1))


class Engine:
    """A model on a device, in a precision, within a budget. Safe to use again and again; holds no picture."""

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        budget_bytes: int,
        farthest: float = math.inf,
    ) -> None:
        self.farthest = farthest  # see make_task; by default the network is asked for every pixel, as in the paper
        dtype = torch.float32 if model.needs_float32 else dtype
        self.model = model.to(device=device, dtype=dtype).eval()
        self.model = self.model.to(memory_format=memory_format(device))  # type: ignore[call-overload]
        self.device = device
        self.dtype = dtype
        self.budget_bytes = budget_bytes

    def painters(self, budget_bytes: int) -> int:
        """Threads that paint at once: as many as torch uses, as long as their working sets take no more than half a
        budget.

        On a CPU each paints its own tile with operations that stay in its core's cache, which beats sharing out every
        operation; a GPU is kept busy by one.
        """
        if self.device.type != "cpu":
            return 1
        with _starting:
            threads = torch.get_num_threads()
        return max(1, min(threads, budget_bytes // (2 * CPU_PAINTER_BYTES)))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Where the network computes in its own precision, whatever a program has set around it: autocast, or fewer
        bits for float32."""
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False), _in_whole_float32():
            yield

    def bands(self, image: Array, output: Size, box: Box | None = None) -> Generator[Array, None, None]:
        """Paint ``image``, (H, W, 3) of uint8, uint16 or float in [0, 1], to ``output`` size, in bands.

        Yields (h, W_out, 3) float32, top to bottom, H_out rows in all; colours in [0, 1] nominally, not clamped.

        Raises InputError for a bad box and MemoryBudgetError where the budget, or the device, is too small.
        """
        yield from self.open(image).bands(output, box)

    def paints(self, image: Size, output: Size, box: Box | None = None) -> bool:
        """Whether the network is asked for a window. One that is made smaller or left as it is, and so is known, is
        filtered, unless ``farthest`` is infinite and its size stays. Raises InputError for a bad box."""
        sides = box_sides(image, box)
        known = all(wanted <= side for wanted, side in zip(output, sides, strict=True))
        restored = self.farthest == math.inf and output == sides
        return not known or restored or self.model.holds_picture

    def open(self, image: Array, *, ensemble: bool = False, again: bool = False, layers: int = 1) -> Encoded:
        """Get an image ready to be painted from.

        With ``again``, which says that more windows than one will be painted, all of it is encoded, once, where the
        budget allows; otherwise what the window needs. ``layers`` is how many images share the budget. With
        ``ensemble`` it is painted as seen in eight ways, turned over and transposed, and the answers are averaged (the
        "geometric self-ensemble" of EDSR): eight times the work for 0.07 dB at x2 and x4 (Set5, the bundled
        model, which has learned from its own eight views; 0.17 and 0.21 dB before it had).
        """
        # A network that holds its own picture would turn that one over.
        views = ALL_VIEWS if ensemble and not self.model.holds_picture else PLAIN
        return Encoded(self, image, views, again=again, layers=layers)


_whole_lock = threading.Lock()
_whole_users = 0
_whole_before: list[str] = []


@contextmanager
def _in_whole_float32() -> Iterator[None]:
    """Convolutions and products of matrices of float32 in float32, not in the ten bits that GPUs may take for it, or
    the eight of CPUs with bfloat16. The switches are the whole process's: the first one in sets them, the last one out
    sets them back."""
    global _whole_users
    # Not by the older switches, allow_tf32, which must not be touched where a program uses these.
    backends: Any = torch.backends
    switches = backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul
    with _whole_lock:
        _whole_users += 1
        if _whole_users == 1:
            _whole_before[:] = [switch.fp32_precision for switch in switches]
            for switch in switches:
                switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _whole_lock:
            _whole_users -= 1
            if _whole_users == 0:
                for switch, before in zip(switches, _whole_before, strict=True):
                    switch.fp32_precision = before


_starting = threading.RLock()  # held while painting threads start (`_Painting._start`)


class Encoded:
    """An image ready to be painted from."""

    def __init__(
        self, engine: Engine, image: Array, views: Sequence[View] = PLAIN, *, again: bool = False, layers: int = 1
    ) -> None:
        self.engine = engine
        self.image = image
        self.again = again
        self.budget_bytes = engine.budget_bytes // layers
        self.size: Size = (image.shape[0], image.shape[1])
        self.views = [(view, _Features(engine, view.of_image(image))) for view in views]

    def forget(self) -> None:
        """Let go of the features that are held."""
        for _, features in self.views:
            features.forget()

    def bands(
        self, output: Size, box: Box | None = None, report: Callable[[float], None] | None = None
    ) -> Generator[Array, None, None]:
        """As :meth:`Engine.bands`. ``report`` is told about which share of the work is done, in [0, 1], after each tile
        that was encoded and each band that was painted and taken."""
        engine = self.engine
        task = make_task(engine.model, self.size, output, box, engine.farthest)
        if not engine.paints(self.size, output, box):
            yield from _reduced(self.image, output, box or whole(self.size), report)
            return
        painters = engine.painters(self.budget_bytes)
        plan = make_plan(
            engine.model,
            engine.dtype,
            task,
            self.budget_bytes,
            gpu=engine.device.type != "cpu",
            threads=painters,
            views=len(self.views),
            hold_image=self.again,
        )
        painted = _Painting(self, task, plan, painters, report).bands()
        if task.windows == (None, None):
            yield from painted
            return
        resampler = BandResampler(task.painted, task.output, task.windows)
        with ThreadPoolExecutor(painters if engine.device.type == "cpu" else RESAMPLERS) as pool:
            for band in painted:
                rows = resampler.push(band, pool.map)
                if len(rows):
                    yield rows


def _reduced(
    image: Array, output: Size, box: Box, report: Callable[[float], None] | None
) -> Generator[Array, None, None]:
    """A window of an image made smaller, or left as it is, by bicubic interpolation with antialiasing, in bands of
    float32."""
    spans = (box.top, box.bottom), (box.left, box.right)
    (top, bottom), (left, right) = (
        _reached(length, span, max(1, (span[1] - span[0]) / wanted))
        for length, span, wanted in zip(image.shape, spans, output, strict=False)
    )
    windows = (box.top - top, box.bottom - top), (box.left - left, box.right - left)
    resampler = BandResampler((bottom - top, right - left), output, windows)
    step = max(1, BAND_PIXELS // (right - left))
    for row in range(top, bottom, step):
        stop = min(row + step, bottom)
        seen = as_input(image[row:stop, left:right], torch.device("cpu"))[0].permute(1, 2, 0)
        rows = resampler.push(seen.numpy())
        if len(rows):
            yield rows
        if report is not None:
            report((stop - top) / (bottom - top))


def _reached(length: int, span: tuple[float, float], step: float) -> tuple[int, int]:
    """The whole pixels of an axis that resampling a span of it reads, where taps are ``step`` of them
    apart."""
    reach = BandResampler.REACH_PX * step
    return max(0, math.floor(span[0] - reach)), min(length, math.ceil(span[1] + reach))


class _Features:
    """An image's features: encoded as far as they were needed, and held as far as the plan allows."""

    def __init__(self, engine: Engine, image: Array) -> None:
        self.engine = engine
        self.image = image
        self.size: Size = (image.shape[0], image.shape[1])
        self._held: _Tiled | None = None

    def forget(self) -> None:
        """Let go of what is held."""
        self._held = None

    def of(self, region: Region, worth_holding: Region, plan: Plan, report: Callable[[Region], None]) -> Tensor:
        """Features of a region of the image, (1, C, h, w), encoded in tiles with the halo around them; cut from those
        of the region that is worth holding, where the plan allows to. ``report`` is told of every tile encoded."""

        def encode(tile: Region) -> Tensor:
            features = self._encode(tile)
            report(tile)
            return features

        held = self._held
        if plan.hold_features and held is not None and held.area.contains(region):
            return held.features(region, encode)
        self._held = held = None  # before the next one is made
        tiled = _Tiled(worth_holding if plan.hold_features else region, plan.tile, self.engine)
        if plan.hold_features:
            self._held = tiled
        return tiled.features(region, encode)

    def _encode(self, tile: Region) -> Tensor:
        engine = self.engine
        top, bottom, left, right = tile
        halo = engine.model.encoder.halo_px
        height, width = self.size
        y0, y1 = max(0, top - halo), min(height, bottom + halo)
        x0, x1 = max(0, left - halo), min(width, right + halo)
        # Where the tile ends with the image the encoder's zero padding is the image's own.
        features = engine.model.encode(as_input(self.image[y0:y1, x0:x1], engine.device))
        scale = engine.model.encoder.scale
        rows = slice((top - y0) * scale, (bottom - y0) * scale)
        columns = slice((left - x0) * scale, (right - x0) * scale)
        return features[..., rows, columns]


class _Tiled:
    """Features of an area of an image, whose tiles are encoded when they are first asked for: painting begins after the
    first of them."""

    def __init__(self, area: Region, tile: Size, engine: Engine) -> None:
        self.area = area
        self.tile = tile
        encoder = engine.model.encoder
        self.scale = encoder.scale
        height, width = area.bottom - area.top, area.right - area.left
        # Before the tiles, so that the memory they give back is in one piece. A single tile's own features are kept.
        self._features: Tensor | None = None
        if height > tile[0] or width > tile[1]:
            self._features = torch.empty(
                (1, encoder.out_dim, height * self.scale, width * self.scale),
                dtype=engine.dtype,
                device=engine.device,
                memory_format=memory_format(engine.device),
            )
        self._encoded: set[Size] = set()

    def features(self, region: Region, encode: Callable[[Region], Tensor]) -> Tensor:
        """Those of a region in the area."""
        (top, bottom, left, right), (height, width) = self.area, self.tile
        for y in range(region.top - (region.top - top) % height, region.bottom, height):
            for x in range(region.left - (region.left - left) % width, region.right, width):
                if (y, x) not in self._encoded:
                    tile = Region(y, min(y + height, bottom), x, min(x + width, right))
                    if self._features is None:
                        self._features = encode(tile)
                    else:
                        self._features[self._place(tile)] = encode(tile)
                    self._encoded.add((y, x))
        assert self._features is not None
        return self._features[self._place(region)]

    def _place(self, region: Region) -> tuple[Any, ...]:
        top, _, left, _ = self.area
        rows = slice((region.top - top) * self.scale, (region.bottom - top) * self.scale)
        return ..., rows, slice((region.left - left) * self.scale, (region.right - left) * self.scale)


def joined(bands: Iterable[Array], rows: int) -> Array:
    """Bands, (h, ...) each, as the one array of so many rows that they are; each is let go of as it is copied."""
    whole: Array | None = None
    done = 0
    for band in bands:
        if whole is None:
            whole = np.empty((rows, *band.shape[1:]), band.dtype)
        whole[done : done + len(band)] = band
        done += len(band)
    if whole is None or done != rows:
        raise ValueError(f"{done} of {rows} rows")
    return whole


def as_input(image: Array, device: torch.device) -> Tensor:
    """(H, W, 3) of uint8, uint16 or float in [0, 1] to what a model encodes: (1, 3, H, W) float32 in [0, 1], on the
    device."""
    greatest = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}.get(image.dtype, 1)
    # Bytes travel to a GPU as they are: a quarter of what they become.
    values = image.copy() if image.dtype == np.uint8 else image.astype(np.float32)
    tensor = torch.from_numpy(values).to(device).float().div_(greatest)
    return tensor.permute(2, 0, 1)[None].contiguous(memory_format=memory_format(device))


class _Painting:
    """One pass over the output."""

    def __init__(
        self, source: Encoded, task: Task, plan: Plan, painters: int, report: Callable[[float], None] | None
    ) -> None:
        self.report = report
        self.painters = painters
        self.encoded = 0  # pixels, some of them more than once
        self.painted = 0  # rows
        per_code, per_pixel = source.engine.model.operations
        self.area = (task.box.bottom - task.box.top) * (task.box.right - task.box.left)
        # A network that is all encoder, or has none, still makes a picture: one operation a pixel.
        self.encoding, self.painting = max(1, per_code) * self.area, max(1, per_pixel) * math.prod(task.painted)
        self.source = source
        self.engine = source.engine
        self.task = task
        self.plan = plan
        box = task.box
        self.rows = coords.axis(task.painted[0], box.bottom - box.top, origin=box.top)
        self.columns = coords.axis(task.painted[1], box.right - box.left, origin=box.left)
        # The upper code of each painted row: what bands are cut by.
        self.row_code = torch.floor(self.rows.position).clamp_(0, task.image[0] - 1).long()

    def bands(self) -> Iterator[Array]:
        done = 0
        keep = reused_memory() if self.engine.device.type == "cpu" else nullcontext()
        with keep, ThreadPoolExecutor(self.painters, initializer=_one_thread) as pool:
            if self.engine.device.type == "cpu":
                self._start(pool)
            while done < self.task.painted[0]:
                failed = False
                try:
                    for band in self._code_band(done, pool):
                        yield band
                        done += len(band)
                        self.painted = done
                        self._tell()
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    failed = True
                # Outside the handler, whose traceback would keep the failed band's tensors alive.
                if failed:
                    self._shrink()
            if not self.source.again:
                self.source.forget()

    def _start(self, pool: ThreadPoolExecutor) -> None:
        """Start all painting threads. What each sets for itself, one thread of torch's, becomes the default of threads
        to come as well, for as long as this takes."""
        with _starting:
            threads = torch.get_num_threads()
            together = threading.Barrier(self.painters)
            try:
                for started in [pool.submit(together.wait) for _ in range(self.painters)]:
                    started.result()
            except BaseException:
                together.abort()
                raise
            finally:
                torch.set_num_threads(threads)

    def _tell(self) -> None:
        """Report which share of the work is done, about: rows that neighbouring bands encode again do not count."""
        if self.report is not None:
            painted = self.painted / self.task.painted[0]
            encoded = 1.0 if painted == 1 else min(1.0, self.encoded / (self.area * len(self.source.views)))
            done = self.encoding * encoded + self.painting * painted
            self.report(done / (self.encoding + self.painting))

    def _tile_encoded(self, tile: Region) -> None:
        self.encoded += (tile.bottom - tile.top) * (tile.right - tile.left)
        self._tell()

    def _shrink(self) -> None:
        self.source.forget()
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.engine.device.type == "mps":
            torch.mps.empty_cache()
        smaller = self.plan.halved()
        if smaller is None:
            raise MemoryBudgetError(
                f"out of memory on {self.engine.device} with the smallest plan, tiles of {math.prod(self.plan.tile)}"
                " pixels; close other programs, use --device cpu or choose a smaller output"
            )
        self.plan = smaller

    def _region(self, size: Size, rows: coords.Axis, columns: coords.Axis) -> Region:
        """The codes that a rectangle is painted from, with the neighbours that folding them needs."""
        margin = self.engine.model.fold_px
        return Region(*_codes_around(rows, size[0], margin), *_codes_around(columns, size[1], margin))

    def _fold(self, view: View, features: _Features, rows: coords.Axis) -> Field:
        """The field that some of the painted rows are painted from."""
        size = features.size
        seen = view.of_axes(rows, self.columns, size)
        if self.source.again:
            worth_holding = Region(0, size[0], 0, size[1])
        else:
            worth_holding = self._region(size, *view.of_axes(self.rows, self.columns, size))
        region = self._region(size, *seen)
        cell = torch.tensor([axis.cell for axis in seen], dtype=torch.float32, device=self.engine.device)
        with self.engine.computing():
            plan = self.plan._replace(tile=self.plan.tile[::-1]) if view.transposed else self.plan
            codes = features.of(region, worth_holding, plan, self._tile_encoded)
            # oneDNN's ReLU makes zeros of what is no number, and a picture of them. A GPU's bands show it themselves.
            # Only float16's own range could be left by the sum alone.
            total = torch.float32 if codes.dtype == torch.float16 else None
            if codes.device.type == "cpu" and not math.isfinite(float(codes.sum(dtype=total))):
                raise self._no_numbers()
            return self.engine.model.fold(codes, cell, Window(region.top, region.left, size))

    def _code_band(self, start: int, pool: ThreadPoolExecutor) -> Iterator[Array]:
        """Paint the rows from ``start`` on that belong to the next ``code_rows`` rows of codes."""
        first = int(self.row_code[start])
        stop = int(torch.searchsorted(self.row_code, first + self.plan.code_rows))
        band_rows = self.rows._replace(position=self.rows.position[start:stop])
        seen = [(view, features.size, self._fold(view, features, band_rows)) for view, features in self.source.views]
        step = min(self.plan.band_rows, stop - start)
        pending: _OnItsWay | None = None
        for top in range(start, stop, step):
            rows = self.rows._replace(position=self.rows.position[top : min(top + step, stop)])
            band: Tensor | None = None
            for view, size, field in seen:
                painted = self._paint(field, *view.of_axes(rows, self.columns, size), pool)
                painted = painted.transpose(0, 1) if view.transposed else painted
                band = painted if band is None else band + painted  # not in place: they are inference tensors
            assert band is not None
            # A GPU paints the next band while this one travels.
            following = _OnItsWay(band if len(seen) == 1 else band / len(seen))
            if pending is not None:
                yield self._checked(pending)
            pending = following
        assert pending is not None
        yield self._checked(pending)

    def _checked(self, pending: _OnItsWay) -> Array:
        band = pending.arrived()
        if not pending.finite:
            raise self._no_numbers()
        return band

    def _no_numbers(self) -> LiifError:
        precision = str(self.engine.dtype).removeprefix("torch.")
        if self.engine.dtype == torch.float32:
            return ModelError("the model answers this picture with values that are no numbers; use another model")
        return RangeError(f"values leave the range of {precision} with this model; use --precision float32")

    def _paint(self, field: Field, rows: coords.Axis, columns: coords.Axis, pool: ThreadPoolExecutor) -> Tensor:
        if self.engine.device.type != "cpu":
            with self.engine.computing():
                return field.paint(rows, columns)
        height, width = len(rows.position), len(columns.position)
        out = torch.empty(height, width, 3, dtype=torch.float32, device="cpu")
        tile_rows, tile_columns = tile_of((height, width), self.painters)

        def tile(y: int, x: int) -> None:
            with self.engine.computing():
                out[y : y + tile_rows, x : x + tile_columns] = field.paint(
                    rows._replace(position=rows.position[y : y + tile_rows]),
                    columns._replace(position=columns.position[x : x + tile_columns]),
                )

        places = [(y, x) for y in range(0, height, tile_rows) for x in range(0, width, tile_columns)]
        for _ in pool.map(lambda place: tile(*place), places):
            pass
        return out


def tile_of(band: Size, painters: int) -> Size:
    """Sides of the tiles that a band is painted in: no wider than is good for one thread, several for each of them, all
    of about one size and as many as leave none idle at the end."""
    height, width = band
    across = -(-width // TILE_COLUMNS)
    least = -(-3 * painters // across)

    def idle(down: int) -> float:
        tiles = across * down
        return -(-tiles // painters) * painters / tiles

    down = min(height, min(range(least, 2 * least + 1), key=idle))
    return min(-(-height // down), TILE_ROWS), -(-width // across)


def _codes_around(axis: coords.Axis, count: int, margin: int) -> tuple[int, int]:
    """First and one past the last of the ``count`` codes that positions on an axis, and folding them, may read."""
    lowest, highest = float(axis.position.min()), float(axis.position.max())
    first = min(max(math.floor(lowest), 0), count - 1)
    last = min(max(math.floor(highest) + 1, 0), count - 1)
    return max(0, first - margin), min(count, last + 1 + margin)


class _OnItsWay:
    """A band on its way to host memory; on a GPU it travels, by a stream of its own, while the next one is painted."""

    def __init__(self, band: Tensor) -> None:
        total = band.sum()  # no number, or infinite, where any value is
        if band.device.type != "cuda":
            self._host, self._total, self._event = band.cpu(), total.cpu(), None
            return
        self._host = torch.empty(band.shape, dtype=band.dtype, device="cpu", pin_memory=True)
        self._total = torch.empty((), dtype=total.dtype, device="cpu", pin_memory=True)
        stream = _copying(band.device)
        stream.wait_stream(torch.cuda.current_stream(band.device))
        with torch.cuda.stream(stream):
            self._host.copy_(band, non_blocking=True)
            self._total.copy_(total, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(stream)
        for sent in (band, total):
            sent.record_stream(stream)  # its memory is not given to another before it has left

    def arrived(self) -> Array:
        if self._event is not None:
            self._event.synchronize()
        array: Array = self._host.numpy()
        return array

    @property
    def finite(self) -> bool:
        """Whether every value of a band that has arrived is a number."""
        return math.isfinite(float(self._total))


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _one_thread() -> None:
    torch.set_num_threads(1)
