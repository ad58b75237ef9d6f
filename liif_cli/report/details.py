"""Details of pictures to look at: which ones, and how each method paints them at each scale.

A detail is chosen by the truth alone, so that no method is favoured: the square with the most energy in edges that go
one way, which finds lines, letters and feathers and passes over noise and grass.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from liif_cli.benchmarks import Dataset, Truth
from liif_cli.benchmarks.datasets import LEAST_SIDE, low_res_size, painted_size, read_rgb
from liif_cli.errors import InputError
from liif_cli.evaluate import KernelMethod, Painted, Score, Work

Array = NDArray[Any]

SIDE = 192  # pixels of a detail: enough to know what it shows, few enough to be enlarged on a telephone
_LOOKED_AT = 24  # pictures of a large set that are searched for details
_STEP = 8  # pixels between the squares that are tried
_NEIGHBOURHOOD = 9  # pixels over which edges must go one way


class Window(NamedTuple):
    """Whole pixels of a picture at full resolution."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Array) -> Array:
        """The pixels of an image inside the window; a view."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


class Detail(NamedTuple):
    """A square of a picture."""

    dataset: Dataset
    truth: Truth
    window: Window
    energy: float


class Details:
    """The details of an evaluation, which collect what is painted while it runs (`evaluate.Keeper`)."""

    def __init__(self, work: Work, count: int = 3) -> None:
        """Choose up to ``count`` details of each data set. Raises InputError for pictures of a benchmark that cannot be
        read."""
        self.work = work
        self.chosen = {
            (dataset.title, detail.truth.name): detail
            for dataset in work.datasets
            for detail in choose(dataset, work.scales, count)
        }
        self._truths: dict[tuple[str, str], str] = {}
        self._inputs: dict[tuple[str, str, float], tuple[str, Sequence[int]]] = {}
        self._painted: dict[tuple[str, str, float, str], str] = {}

    def wants(self, dataset: Dataset, truth: Truth) -> bool:
        return (dataset.title, truth.name) in self.chosen

    def take(self, painted: Painted, image: Array) -> None:
        name = painted.dataset.title, painted.truth.name
        window = self.chosen[name].window
        self._painted[*name, painted.scale, painted.method.name] = _uri(window.of(image))
        if name not in self._truths:
            self._truths[name] = _uri(window.of(painted.pair.high_res) / 255)
        if (*name, painted.scale) not in self._inputs:
            low_res = painted.pair.low_res
            pixels = KernelMethod("nearest").paint(low_res, (image.shape[0], image.shape[1]))  # shows them as they are
            shown = _uri(window.of(pixels), lossless=True)
            self._inputs[*name, painted.scale] = shown, (low_res.shape[1], low_res.shape[0])

    def as_json(self, scores: Sequence[Score]) -> dict[str, Any]:
        """What the page's script reads: pictures as data URIs, and the scores of the whole pictures."""
        psnr = {(each.dataset, each.image, each.scale, each.method): each.psnr for each in scores}
        names = [method.name for method in self.work.methods]
        return {
            "methods": [{"name": method.name, "kind": method.kind} for method in self.work.methods],
            "scales": [f"{scale:g}" for scale in self.work.scales],
            "details": [
                {
                    "dataset": name[0],
                    "image": name[1],
                    "size": [detail.window.width, detail.window.height],
                    "truth": self._truths[name],
                    "scales": {
                        f"{scale:g}": {
                            "input": self._inputs[*name, scale][0],
                            "inputSize": self._inputs[*name, scale][1],
                            "methods": [self._painted[*name, scale, method] for method in names],
                            "psnr": [_finite(psnr.get((*name, scale, method))) for method in names],
                        }
                        for scale in self.work.scales
                    },
                }
                for name, detail in self.chosen.items()
                if all((*name, scale) in self._inputs for scale in self.work.scales)
            ],
        }


def choose(dataset: Dataset, scales: Sequence[float], count: int) -> list[Detail]:
    """The details of a data set with the most to see, at most one a picture, the richest first."""
    step = max(1, math.ceil(len(dataset.truths) / _LOOKED_AT))
    found = []
    for truth in dataset.truths[::step]:
        try:
            image = read_rgb(truth.path)
        except InputError:
            if dataset.all_count:
                raise
            continue  # left out of the evaluation as well
        whole = image.shape[0], image.shape[1]
        sizes = [painted_size(low_res_size(whole, scale), scale) for scale in scales]
        height, width = (min(side) for side in zip(*sizes, strict=True))
        if min(height, width) < LEAST_SIDE:
            continue  # not scored at every scale
        found.append(_richest(dataset, truth, image[:height, :width]))
    return sorted(found, key=lambda detail: -detail.energy)[:count]


def _richest(dataset: Dataset, truth: Truth, image: Array) -> Detail:
    """The square of a picture with the most energy in edges of one direction."""
    height, width = (min(SIDE, side) for side in image.shape[:2])
    grey = image.mean(axis=2, dtype=np.float32)
    down, across = np.gradient(grey)
    # The structure tensor of each neighbourhood; the difference of its eigenvalues is what has a direction.
    xx, yy, xy = (_means(plane, _NEIGHBOURHOOD) for plane in (across * across, down * down, across * down))
    directed = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    sums = np.pad(directed, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    tops = np.arange(0, directed.shape[0] - height + 1, _STEP)
    lefts = np.arange(0, directed.shape[1] - width + 1, _STEP)
    corner = np.ix_(tops, lefts)
    inside = (
        sums[np.ix_(tops + height, lefts + width)]
        - sums[np.ix_(tops, lefts + width)]
        - sums[np.ix_(tops + height, lefts)]
        + sums[corner]
    )
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    window = Window(int(tops[row]), int(lefts[column]), height, width)
    return Detail(dataset, truth, window, float(inside.max()) / (height * width))


def _means(plane: Array, side: int) -> Array:
    """Means over squares around each pixel; beyond the edge there is nothing."""
    padded = np.pad(plane, (side // 2 + 1, side // 2))[: plane.shape[0] + side, : plane.shape[1] + side]
    sums = padded.cumsum(0).cumsum(1)
    means: Array = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
    return means


def _finite(value: float | None) -> float | None:
    return round(value, 3) if value is not None and math.isfinite(value) else None


def _uri(image: Array, *, lossless: bool = False) -> str:
    """Floats (H, W, 3) as a WebP picture in a data URI; at a quality at which losses are hard to see enlarged."""
    levels = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "WEBP", quality=95, method=4, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode("ascii")
