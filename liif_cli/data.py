"""Pictures for training: any folder of them, decoded once, and the paper's samples drawn from it.

A sample (paper, section 4.1): a scale ``s`` drawn from a range, a square crop of ``round(low_res_side * s)`` pixels,
its bicubic reduction as the input, and some of the crop's pixels, by their coordinates, as the queries to answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from liif_cli.config import SampleRule
from liif_cli.errors import InputError, LiifError
from liif_cli.files import atomic_path
from liif_cli.images import Picture, read
from liif_cli.resize import bicubic_reduce_batch

Size = tuple[int, int]  # (height, width)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".heic"})


def image_files(folder: Path) -> list[Path]:
    """All pictures below a folder, by their file names' endings, in a fixed order. Raises InputError where there are
    none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one with pictures in it")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{folder}: no pictures in it; looked for {', '.join(sorted(SUFFIXES))}")
    return files


class Batch(NamedTuple):
    """What a training step needs; values in [0, 1], float32."""

    low_res: Tensor  # (B, 3, side, side)
    coords: Tensor  # (B, Q, 2), (y, x) in [-1, 1]
    cell: Tensor  # (B, 2), relative (coords.py)
    high_res: Tensor  # (B, Q, 3)


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
    folder: Path, cache: Path, *, smallest_side: int = 1, progress: Callable[[int, int], None] | None = None
) -> PictureStore:
    """Decode all pictures of ``folder`` into ``cache`` (a folder, never inside the data), or find them there.

    Pictures that cannot be read or have a side under ``smallest_side`` are left out and said in ``skipped``. A change
    of any file's name, size or time makes a new store. ``progress`` is told (decoded, of how many).

    Raises InputError when no picture is left.
    """
    folder = Path(folder)
    files = image_files(folder)
    stamp = [[str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    key = hashlib.sha256(json.dumps([str(folder.resolve()), stamp]).encode()).hexdigest()[:16]
    store, index = cache / f"{key}.rgb", cache / f"{key}.json"
    if not index.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _decode(folder, files, store, index, progress)
    content = json.loads(index.read_text())
    skipped, offsets, sizes, start = list(content["skipped"]), [], [], 0
    for name, height, width in content["pictures"]:
        if min(height, width) >= smallest_side:
            offsets.append(start)
            sizes.append((height, width))
        else:
            skipped.append(f"{name}: {width}x{height} is smaller than the largest crop, {smallest_side} pixels a side")
        start += height * width * 3
    if not sizes:
        raise InputError(
            f"{folder}: no picture can be used, {skipped[0]}; add larger pictures,"
            " or train with a smaller low_res_side or scale_max"
        )
    return PictureStore(np.memmap(store, np.uint8, mode="r"), offsets, sizes, skipped)


def _decode(
    folder: Path, files: Sequence[Path], store: Path, index: Path, progress: Callable[[int, int], None] | None
) -> None:
    pictures: list[tuple[str, int, int]] = []
    skipped: list[str] = []
    with atomic_path(store, overwrite=True) as temporary, temporary.open("wb") as out:
        for number, path in enumerate(files):
            try:
                pixels = rgb8(read(path))
            except LiifError as error:
                skipped.append(str(error))
            else:
                out.write(pixels.tobytes())
                pictures.append((str(path.relative_to(folder)), *pixels.shape[:2]))
            if progress is not None:
                progress(number + 1, len(files))
    if not pictures:
        raise InputError(f"{folder}: none of the {len(files)} pictures in it can be read; the first: {skipped[0]}")
    # The index last: a store without one does not count.
    with atomic_path(index, overwrite=True) as temporary:
        temporary.write_text(json.dumps({"pictures": pictures, "skipped": skipped}))


def rgb8(picture: Picture) -> np.ndarray:
    """A picture as the protocol's data sets have them, (H, W, 3) uint8: grey becomes RGB, alpha is dropped."""
    pixels = picture.pixels
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    colours = pixels[..., :1] if pixels.shape[-1] < 3 else pixels[..., :3]
    return np.ascontiguousarray(np.broadcast_to(colours, (*pixels.shape[:2], 3)))


class Sampler:
    """Draws batches from a store. The same ``seed`` and step give the same batch, whatever was drawn before, so that a
    resumed run needs no random state and each process of several can draw its own share."""

    def __init__(self, store: PictureStore, rule: SampleRule, *, seed: int = 0) -> None:
        self.store = store
        self.rule = rule
        self.seed = seed
        areas = np.array([height * width for height, width in store.sizes], dtype=np.float64)
        share = areas**rule.area_power
        self.cumulated = np.cumsum(share / share.sum())

    def batch(self, step: int, numbers: Sequence[int], device: torch.device) -> Batch:
        """Samples ``numbers`` (their places in the global batch) of one step, on ``device``."""
        crops, draws = [], []
        pad = self.rule.largest_crop
        padded = torch.zeros(len(numbers), pad, pad, 3, dtype=torch.uint8, pin_memory=device.type == "cuda")
        for place, number in enumerate(numbers):
            draw = np.random.default_rng((self.seed, step, number))
            side = round(self.rule.low_res_side * draw.uniform(self.rule.scale_min, self.rule.scale_max))
            padded[place, :side, :side] = torch.from_numpy(self._crop(draw, side))
            crops.append(side)
            draws.append(draw.random(self.rule.queries, dtype=np.float32))
        high_res = padded.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        sides = torch.tensor(crops, device=device)
        low_res = bicubic_reduce_batch(high_res, crops, self.rule.low_res_side) / 255
        # Queries: one pixel out of each of Q equal stretches of the crop's pixels. Each pixel is as likely as any
        # other, and at scale 1 every pixel is asked exactly once, as drawing without replacement has it.
        uniform = torch.from_numpy(np.stack(draws)).to(device)
        stretch = (sides * sides)[:, None].double() / self.rule.queries
        pixel = ((torch.arange(self.rule.queries, device=device) + uniform.double()) * stretch).long()
        pixel = torch.minimum(pixel, (sides * sides - 1)[:, None])
        row, column = pixel // sides[:, None], pixel % sides[:, None]
        values = high_res.flatten(2).gather(2, (row * pad + column)[:, None].expand(-1, 3, -1))
        coords = (2 * torch.stack([row, column], dim=-1) + 1) / sides[:, None, None] - 1
        cell = (2 * self.rule.low_res_side / sides)[:, None].expand(-1, 2)
        return Batch(low_res, coords.float(), cell, values.permute(0, 2, 1).float() / 255)

    def _crop(self, draw: np.random.Generator, side: int) -> np.ndarray:
        picture = self.store[min(int(np.searchsorted(self.cumulated, draw.random())), len(self.store) - 1)]
        top, left = (int(draw.integers(0, length - side + 1)) for length in picture.shape[:2])
        crop = picture[top : top + side, left : left + side]
        if draw.random() < 0.5:
            crop = crop[::-1]
        if draw.random() < 0.5:
            crop = crop[:, ::-1]
        if draw.random() < 0.5:
            crop = crop.transpose(1, 0, 2)
        return np.ascontiguousarray(crop)
