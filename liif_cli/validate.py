"""Scores and a look at a model while it trains, by the published protocol (``protocol.py``)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image

from liif_cli.benchmarks.datasets import KNOWN, Pair, find, low_res_size, painted_size, read_rgb, reduce
from liif_cli.config import Validation, to_mapping
from liif_cli.data import image_files
from liif_cli.engine import Engine, joined
from liif_cli.errors import InputError
from liif_cli.files import atomic_path, is_folder
from liif_cli.metrics import Channel, psnr
from liif_cli.models import Model
from liif_cli.protocol import Protocol
from liif_cli.resize import pil_bicubic
from liif_cli.upscaler import default_bytes

PROTOCOL = Protocol()
SHOWN_PX = 192  # side of the crop that the comparison shows


class Scores(NamedTuple):
    """PSNR in dB, the mean over the pictures."""

    psnr: dict[str, float]  # by scale, "x2"


def pair(picture: np.ndarray, scale: float) -> Pair:
    """The protocol's pair of a picture, (H, W, 3) uint8. Raises InputError where nothing would be left of it."""
    size = (picture.shape[0], picture.shape[1])
    if min(low_res_size(size, scale)) < 1:
        raise InputError(f"a picture of {size[1]}x{size[0]} cannot be scored at x{scale:g}: it is too small")
    source = PROTOCOL.reduction(scale)
    low_res = reduce(picture, scale, source)
    height, width = painted_size((low_res.shape[0], low_res.shape[1]), scale)
    return Pair(low_res, picture[:height, :width], source)


class Validator:
    """The pictures of a validation and how they are scored."""

    def __init__(self, folder: Path, config: Validation) -> None:
        self.config = config
        named = Path(folder).resolve()
        # As ``eval`` has it: of a benchmark's folder the pictures themselves, not their reduced copies.
        dataset = find(str(named), ()) if is_folder(named) else None
        files = image_files(folder) if dataset is None else [truth.path for truth in dataset.truths]
        self.name = named.stem if dataset is None else dataset.title
        luma = self.name in {known.title for known in KNOWN.values() if not known.rgb}
        self.channel = cast(Channel, {"auto": "y" if luma else "rgb"}.get(config.channel, config.channel))
        self.identity = json.dumps([str(named), to_mapping(config)])  # of equal validations equal
        self.pictures = [self._picture(path) for path in files[: config.pictures or None]]
        # What is not scored as a whole does not bear the name of the whole.
        if len(self.pictures) < len(files):
            self.name += f", {len(self.pictures)} of {len(files)}"
        if config.crop:
            self.name += f", {config.crop} pixels in the middle"

    def _picture(self, path: Path) -> np.ndarray:
        picture = _middle(read_rgb(path), self.config.crop)
        height, width = picture.shape[:2]
        for scale in self.config.scales:
            left = min(painted_size(low_res_size((height, width), scale), scale)) - 2 * self._border(scale)
            if left < 1:
                raise InputError(
                    f"{path}: {width}x{height} leaves nothing to score at x{scale:g} without the border of"
                    f" {self._border(scale)} pixels; take it out, or set smaller validation.scales"
                )
        return picture

    def _border(self, scale: float) -> int:
        return PROTOCOL.shave(scale, rgb_set=self.channel == "rgb")

    def scores(self, model: Model, device: torch.device) -> Scores:
        """Score a model in float32. The model is moved to the device and stays there."""
        engine = _engine(model, device)
        means = {}
        for scale in self.config.scales:
            values = [
                psnr(paint(engine, low_res, high_res), high_res, border=self._border(scale), channel=self.channel)
                for low_res, high_res, *_ in (pair(picture, scale) for picture in self.pictures)
            ]
            means[f"x{scale:g}"] = float(np.mean(values))
        return Scores(means)

    def comparison(self, model: Model, device: torch.device) -> Image.Image:
        """The middle of the first picture at the largest scale: bicubic, the model's, the truth, side by side."""
        scale = max(self.config.scales)
        low_res, truth, *_ = pair(_middle(self.pictures[0], max(SHOWN_PX, math.ceil(scale))), scale)
        painted = paint(_engine(model, device), low_res, truth)
        size = (truth.shape[0], truth.shape[1])
        shown = [pil_bicubic(low_res, size), np.rint(painted.clip(0, 1) * 255).astype(np.uint8), truth]
        gap = np.full((truth.shape[0], 4, 3), 255, np.uint8)
        return Image.fromarray(np.concatenate([shown[0], gap, shown[1], gap, shown[2]], axis=1))


def _engine(model: Model, device: torch.device) -> Engine:
    return Engine(model, device, torch.float32, default_bytes(device))


def paint(engine: Engine, low_res: np.ndarray, high_res: np.ndarray) -> np.ndarray:
    """What the model makes of ``low_res`` at the size of ``high_res``: (H, W, 3) float32."""
    size = (high_res.shape[0], high_res.shape[1])
    return joined(engine.bands(low_res, size), size[0])


def write_png(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all, over the one that is there."""
    with atomic_path(path, overwrite=True) as temporary:
        picture.save(temporary, format="PNG")


def _middle(picture: np.ndarray, side: int) -> np.ndarray:
    """The square of ``side`` pixels in the middle, as far as the picture reaches; 0 means all of it."""
    if not side:
        return picture
    height, width = (min(side, length) for length in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return np.ascontiguousarray(picture[top : top + height, left : left + width])
