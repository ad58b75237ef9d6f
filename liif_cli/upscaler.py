"""What everything else calls: a model, ready on a device, that makes pictures larger. The Python API is this room.

model = liif_cli.load()
big = model.upscale(image, scale=2.7)
field = model.encode(image)
detail = field.render(size=(1080, 1920), box=(0, 0, 54, 96))
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from liif_cli import allocator, checkpoint, control_groups, weights
from liif_cli.engine import MIB, Encoded, Engine, joined
from liif_cli.errors import MemoryBudgetError, RangeError, UsageError
from liif_cli.images import Picture, compose, from_array, from_pil, keep_flat, layers, looks_drawn, to_array, to_pil
from liif_cli.out_of_memory import is_out_of_memory
from liif_cli.sizing import Box, Size, Sizing, box_sides

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Without --memory: this share of what is free, and no more than the most that makes anything faster.
FREE_SHARE = 0.5
MOST_BYTES = 4 * 2**30
# 64 MiB: a GPU without them free is no use.
PROBE_VALUES = 2**24
# Those that "auto" chooses from.
PHOTOGRAPHS, JPEG, DRAWN = "default", "liif-jpeg", "liif-drawn"
# Photographs that are JPEG files of a lower quality are painted better by their model; so are WebP and AVIF files,
# whose quality is not read, at what encoders choose by themselves (benchmarks/TRAINING.md).
COARSE_QUALITY = 95
UNTOLD_QUALITY = frozenset({"WEBP", "AVIF"})
# Below this quality JPEG makes plateaus of skies that reach beyond its blocks, which a network is to smooth.
PLATEAUS = 50
# The scale beyond which the network's picture is enlarged by bicubic interpolation instead (benchmarks/TRAINING.md).
FARTHEST = 4.0


_log = logging.getLogger(__name__)

# oneDNN keeps the code it makes for each new shape, by default of 1024 of them: a batch of pictures of all sizes would
# take ever more memory for it. A network that learns has a few dozen. Heard when oneDNN is first used.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def load(
    model: str | Path = weights.AUTO,
    *,
    device: str = "auto",
    precision: str = "auto",
    memory: str | int | None = None,
    direct: bool = False,
) -> Upscaler:
    """Load a model, by its name in the registry or by the path of a checkpoint or of a training run's folder.

    Args:
        model: "auto" chooses for each picture which of the bundled models suits it: one for photographs, one for JPEG,
            WebP and AVIF files (PIL images as opened from them, lossless WebP included: arrays and copies do not tell),
            one for what a computer drew. Name one, as "default", which is that for photographs, to enlarge the frames
            of a film all alike.
        device: "auto" (the first GPU, if there is one and it works), "cpu", "cuda", "cuda:1", "mps".
        precision: "auto" (half precision where the device computes in it faster, but float32 for pictures of more than
            8 bits per channel), "float32", "bfloat16", "float16".
        memory: what the network may work in, in bytes or as "4G"; by default a share of what is free. The input and the
            picture that is returned are held in addition.
        direct: ask the network for every pixel, at scale 1 and at any above. By default it paints at x4 at most
            and bicubic interpolation goes on from there, which is a little better on photographs and much faster.

    Raises ModelError for the model, MemoryBudgetError where it does not fit into memory, UsageError for the rest.
    """
    chosen = choose_device(device)
    limit = parse_memory(memory) if memory is not None else None
    farthest = math.inf if direct else FARTHEST
    if model == weights.AUTO:
        return _Choosing(chosen, precision, limit, farthest)
    return Upscaler(model, chosen, precision, limit, farthest)


class Upscaler:
    """A model on a device. Pictures may be given as PIL images, which come back as such, as numpy arrays or as
    ``images.Picture``, for both of which arrays come back."""

    def __init__(
        self, model: str | Path, device: torch.device, precision: str, memory_bytes: int | None, farthest: float
    ) -> None:
        known = weights.registry().find(model) if isinstance(model, str) else None
        self.model = known.name if known else str(model)  # not an alias, which may mean another one some day
        self.source = weights.resolve(model)
        self.precision = precision
        self.memory_bytes = memory_bytes
        self._farthest = farthest
        self._engine = self._load(device, choose_precision(precision, device))

    @property
    def computes_in(self) -> str:
        """The precision in words: "bfloat16, and float32 for 16 bits"."""
        chosen = str(self.dtype).removeprefix("torch.")
        return f"{chosen}, and float32 for 16 bits" if self._spares_deep_pictures else chosen

    @property
    def _spares_deep_pictures(self) -> bool:
        return self.precision == "auto" and self.dtype != torch.float32

    def _load(self, device: torch.device, dtype: torch.dtype) -> Engine:
        try:
            return Engine(checkpoint.load(self.source), device, dtype, self.memory_bytes or 0, self._farthest)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryBudgetError(
                f"out of memory on {device} while the model was loaded; close other programs, or use --device cpu"
            ) from None

    @cached_property
    def _exact(self) -> Engine:
        return self._load(self.device, torch.float32)

    def _engine_for(self, picture: Picture) -> Engine:
        """Half precision has 8 to 11 bits: enough for pictures of 8, and steps in the skies of those of 16."""
        return self._exact if self._spares_deep_pictures and picture.depth > 8 else self._engine

    @property
    def device(self) -> torch.device:
        return self._engine.device

    @property
    def dtype(self) -> torch.dtype:
        return self._engine.dtype

    def suited_to(self, picture: Picture) -> Upscaler:
        """The one to enlarge a picture with: this one, unless it was loaded as "auto". Raises ModelError where the
        chosen model cannot be loaded."""
        return self

    def paints(self, image: Size, output: Size, box: Box | None = None) -> bool:
        """Whether the network is asked for an output, or it is filtered only. Raises InputError for a bad box."""
        return self._engine.paints(image, output, box)

    def upscale(
        self,
        image: Any,
        scale: float | None = None,
        *,
        size: Size | None = None,
        box: tuple[float, float, float, float] | None = None,
        ensemble: bool = False,
    ) -> Any:
        """Paint an image larger.

        Args:
            image: PIL image, or numpy (H, W) or (H, W, C) with C of 1 to 4, uint8, uint16 or float in [0, 1].
            scale: factor, any positive number; or
            size: (height, width) of the output.
            box: (top, left, bottom, right), the window to paint, in pixels of the image.
            ensemble: average eight paintings, turned over and transposed: slightly better, eight times slower.

        Returns what was given: a PIL image for a PIL image, an array of the same type and number of channels for an
        array.
        """
        return PictureField(self, image, ensemble=ensemble, again=False).render(scale, size=size, box=box)

    def encode(self, image: Any, *, ensemble: bool = False) -> PictureField:
        """Encode an image once, to paint from it as often as wanted."""
        return PictureField(self, image, ensemble=ensemble)

    def working_bytes(self) -> int:
        """What the engine may use now: the limit given, or a share of what is free on the device."""
        return default_bytes(self.device) if self.memory_bytes is None else self.memory_bytes

    def open(
        self, picture: Picture, budget_bytes: int | None = None, *, ensemble: bool = False, again: bool = False
    ) -> OpenPicture:
        """Get a picture ready to be painted from by this very model, within a budget; ``again`` if more windows than
        one will be."""
        budget = self.working_bytes() if budget_bytes is None else budget_bytes
        shown = layers(picture)

        def layer(number: int, *, spare: bool = False) -> Encoded:
            engine = self._exact if spare else self._engine_for(picture)
            engine.budget_bytes = budget
            return engine.open(shown[number], ensemble=ensemble, again=again, layers=len(shown))

        half = self._spares_deep_pictures and self._engine_for(picture) is self._engine
        return OpenPicture(picture, list(map(layer, range(len(shown)))), partial(layer, spare=True) if half else None)


class _Choosing(Upscaler):
    """The model for photographs, which knows when another one is asked for."""

    def __init__(self, device: torch.device, precision: str, memory_bytes: int | None, farthest: float) -> None:
        super().__init__(PHOTOGRAPHS, device, precision, memory_bytes, farthest)
        self._other = cache(lambda name: Upscaler(name, device, precision, memory_bytes, farthest))

    def suited_to(self, picture: Picture) -> Upscaler:
        untold = picture.format in UNTOLD_QUALITY and not picture.lossless
        if untold or (picture.jpeg_quality or COARSE_QUALITY) < COARSE_QUALITY:
            return self._other(JPEG)
        if looks_drawn(picture):
            return self._other(DRAWN if picture.lossless else JPEG)
        return self


class OpenPicture:
    """A picture whose layers (colour, and alpha where it varies) are ready to be painted."""

    def __init__(self, picture: Picture, layers: list[Encoded], in_float32: Callable[[int], Encoded] | None) -> None:
        """``in_float32`` makes the layer to go on with where values leave the range of half precision; without it that
        is an error."""
        self.picture = picture
        self._layers = layers
        self._in_float32 = in_float32

    def bands(
        self, size: Size, box: Box | None = None, report: Callable[[float], None] | None = None
    ) -> Generator[np.ndarray, None, None]:
        """Yield the rows of the output, (h, W, C) in the picture's own type, top to bottom. ``report`` is told about
        which share of the work is done, in [0, 1]."""
        shares = [0.0] * len(self._layers)

        def tell(number: int, share: float) -> None:
            shares[number] = share
            if report is not None:
                report(sum(shares) / len(shares))

        streams = [self._painted(number, size, box, partial(tell, number)) for number in range(len(self._layers))]
        if len(streams) == 1:
            with closing(streams[0]):
                for band in streams[0]:
                    yield compose(self.picture, [band])
            return
        # Both are painted by the same plan, yet nothing here relies on that: rows are handed out as far as both have
        # come.
        with closing(streams[0]), closing(streams[1]):
            held = [np.empty((0, size[1], 3), np.float32) for _ in streams]
            done = 0
            while done < size[0]:
                for number, stream in enumerate(streams):
                    if not len(held[number]):
                        held[number] = next(stream)
                rows = min(len(band) for band in held)
                yield compose(self.picture, [band[:rows] for band in held])
                held = [band[rows:] for band in held]
                done += rows
            for stream in streams:  # to its end, where it tells of it and tidies up
                next(stream, None)

    def _painted(
        self, number: int, size: Size, box: Box | None, report: Callable[[float], None]
    ) -> Generator[np.ndarray, None, None]:
        """The bands of a layer, with areas of one colour as they are; where half precision fails all is painted again
        in float32, and what was given already is left out."""
        done = again = 0
        layer = self._layers[number]
        sides = box_sides(layer.size, box)
        enlarged = size[0] >= sides[0] and size[1] >= sides[1]
        plain = (self.picture.jpeg_quality or PLATEAUS) >= PLATEAUS and not layer.engine.model.holds_picture
        while done < size[0]:
            try:
                with closing(self._layers[number].bands(size, box, report)) as bands:
                    for band in bands:
                        known = min(again, len(band))
                        again -= known
                        if known < len(band):
                            rows = band[known:]
                            yield keep_flat(layer.image, rows, done, size, box) if enlarged and plain else rows
                        done += len(band) - known
            except RangeError:
                if self._in_float32 is None:
                    raise
                _log.info("liif: values leave the range of half precision; going on in float32")
                self._layers[number].forget()
                self._layers[number] = self._in_float32(number)
                again = done


class PictureField:
    """An encoded image: paint any window of it at any size. ``model`` names what it was encoded by."""

    def __init__(self, upscaler: Upscaler, image: Any, *, ensemble: bool = False, again: bool = True) -> None:
        if again and isinstance(image, np.ndarray):
            image = image.copy()  # it is encoded when a window is asked for, and its owner may use it anew until then
        self._picture, self._restore = _as_picture(image)
        suited = upscaler.suited_to(self._picture)
        self.model = suited.model
        self._open = suited.open(self._picture, ensemble=ensemble, again=again)

    def render(
        self,
        scale: float | None = None,
        *,
        size: Size | None = None,
        box: tuple[float, float, float, float] | None = None,
    ) -> Any:
        """Paint ``box`` (top, left, bottom, right; all of the image by default) at ``size`` or enlarged by
        ``scale``."""
        window = None if box is None else _as_box(box)
        target = Sizing(scale=scale, size=size).resolve(box_sides(self._picture.size, window))
        return self._restore(joined(self._open.bands(target, window), target[0]))


def _as_box(box: Any) -> Box:
    """Plain numbers: arrays' own overflow in arithmetic with pixels."""
    try:
        top, left, bottom, right = map(float, box)
    except (TypeError, ValueError) as error:
        raise UsageError(f"a box is four numbers (top, left, bottom, right), not {box!r}") from error
    return Box(top, left, bottom, right)


def _as_picture(image: Any) -> tuple[Picture, Callable[[np.ndarray], Any]]:
    if isinstance(image, Picture):
        return image, lambda pixels: pixels
    if isinstance(image, Image.Image):
        picture = from_pil(image)
        return picture, lambda pixels: to_pil(pixels, picture)
    if isinstance(image, np.ndarray):
        return from_array(image), lambda pixels: to_array(pixels, image)
    raise UsageError(f"cannot upscale a {type(image).__name__}: give a PIL image or a numpy array")


def choose_device(name: str) -> torch.device:
    """The device a name stands for; for "auto" the first GPU, or the CPU where none is there or that one fails.

    Raises UsageError for one that is unknown, not there, or fails.
    """
    if name == "auto":
        for kind, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
            device = _numbered(torch.device(kind))
            if there and (problem := _problem_of(device)) is None:
                return device
            if there:
                _log.warning("liif: %s cannot be used (%s); going on with the CPU", device, problem)
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cpu":
        return torch.device("cpu")
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type)
    if count is None:
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps")
    if (device.index or 0) >= count:
        raise UsageError(f"there is no device {name!r} here: use --device cpu, or auto")
    device = _numbered(device)
    if problem := _problem_of(device):
        raise UsageError(f"device {name!r} cannot be used ({problem}): use --device cpu, or auto")
    return device


def _numbered(device: torch.device) -> torch.device:
    """The device with its number: without one it would be another in threads with another present GPU."""
    if device == torch.device("cuda"):
        with suppress(RuntimeError, AssertionError):  # what is wrong with it is found out by trying
            return torch.device("cuda", torch.cuda.current_device())
    return device


def _problem_of(device: torch.device) -> str | None:
    """What keeps a GPU that is there from working, in the driver's words: too little free memory, or no code for its
    generation in this build of torch. None where it works."""
    try:
        float(torch.ones(PROBE_VALUES, device=device).sum())
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return None


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type computed in. Raises UsageError for an unknown one."""
    if name in PRECISIONS:
        return PRECISIONS[name]
    if name != "auto":
        raise UsageError(f"unknown precision {name!r}: use auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        return torch.float16
    # Without instructions for it bfloat16 is emulated, which is slower than float32 and loses digits for nothing.
    return torch.bfloat16 if device.type == "cpu" and _has_bfloat16() else torch.float32


def _has_bfloat16() -> bool:
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes if probe is not None)


def parse_memory(text: str | int) -> int:
    """Bytes of "4G", "1.5 GiB", "800M" or a plain number; units are powers of 1024. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(text), re.IGNORECASE)
    if match is None:
        raise UsageError(f"memory {text!r}: write it as 4G, 1.5G or 800M")
    size = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
    if size < MIB:
        raise UsageError(f"memory {text!r}: is {size} bytes; write it as 4G, 1.5G or 800M")
    return size


def default_bytes(device: torch.device) -> int:
    """What a picture may take where nobody says how much: a share of what is free on a device."""
    if (share := free_bytes(device) * FREE_SHARE) < MOST_BYTES:
        allocator.give_back()  # what is kept is free as well
        share = free_bytes(device) * FREE_SHARE
    return min(MOST_BYTES, int(share))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, within the limit of a container (a control group of version 2) where there is
    one."""
    if device.type == "cuda":
        # What torch keeps for the next allocation is free as well.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """What is left of the memory limits of the control groups that this process is in."""
    for folder in control_groups.own_groups():
        try:
            limit = (folder / "memory.max").read_text().strip()
            used = int((folder / "memory.current").read_text())
            # Files that were read or written count as used until the memory is needed.
            parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:  # the topmost has none
            continue
        if limit != "max":
            yield max(0, int(limit) - used + int(parts.get("inactive_file", 0)))


def process_bytes() -> int:
    """What this process holds in memory now."""
    return int(psutil.Process(os.getpid()).memory_info().rss)


def within_process(memory_bytes: int) -> int:
    """What is left of a limit on the whole process, after what it holds already.

    Raises MemoryBudgetError where nothing is.
    """
    allocator.give_back()  # what is kept can be used again, and is not held
    held = process_bytes()
    left = memory_bytes - held
    if left <= 0:
        raise MemoryBudgetError(
            f"--memory allows {memory_bytes // MIB} MiB, and {held // MIB} MiB are in use before any work; raise it, to"
            f" {-(-2 * held // (100 * MIB)) * 100}M or more"
        )
    return left
