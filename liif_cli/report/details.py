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
from liif_cli.benchmarks.datasets import low_res_size, painted_size, read_rgb
from liif_cli.evaluate import KernelMethod, Score, Window, Work

Array = NDArray[Any]

SIDE = 192  # pixels of a detail: enough to know what it shows, few enough to be enlarged on a telephone
_LOOKED_AT = 24  # pictures of a large set that are searched for details
_STEP = 8  # pixels between the squares that are tried
_NEIGHBOURHOOD = 9  # pixels over which edges must go one way


class Detail(NamedTuple):
    """A square of a picture."""

    dataset: Dataset
    truth: Truth
    window: Window
    energy: float


def details(work: Work, scores: Sequence[Score], count: int) -> dict[str, Any]:
    """Up to ``count`` details of each data set, painted by every method at every scale, as the page's script reads
    them: pictures as data URIs."""
    found = [detail for dataset in work.datasets for detail in choose(dataset, work.scales, count)]
    psnr = {(each.dataset, each.image, each.scale, each.method): each.psnr for each in scores}
    return {
        "methods": [{"name": method.name, "kind": method.kind} for method in work.methods],
        "scales": [f"{scale:g}" for scale in work.scales],
        "details": [_painted(detail, work, psnr) for detail in found],
    }


def choose(dataset: Dataset, scales: Sequence[float], count: int) -> list[Detail]:
    """The details of a data set with the most to see, at most one a picture, the richest first."""
    step = max(1, math.ceil(len(dataset.truths) / _LOOKED_AT))
    found = []
    for truth in dataset.truths[::step]:
        image = read_rgb(truth.path)
        whole = image.shape[0], image.shape[1]
        sizes = [painted_size(low_res_size(whole, scale), scale) for scale in scales]
        height, width = (min(side) for side in zip(*sizes, strict=True))
        found.append(_richest(dataset, truth, image[:height, :width]))
    return sorted(found, key=lambda detail: -detail.energy)[:count]


def _richest(dataset: Dataset, truth: Truth, image: Array) -> Detail:
    """The square of a picture with the most energy in edges of one direction."""
    height, width = (min(SIDE, side) for side in image.shape[:2])
    grey = image.mean(axis=2)
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


def _painted(detail: Detail, work: Work, psnr: dict[tuple[str, str, float, str], float]) -> dict[str, Any]:
    dataset, truth, window = detail.dataset, detail.truth, detail.window
    image = read_rgb(truth.path)
    pixels = KernelMethod("nearest")  # shows the input as it is
    scales = {}
    for scale in work.scales:
        pair = dataset.pair(truth, scale, work.protocol, image)
        size = pair.high_res.shape[0], pair.high_res.shape[1]
        scales[f"{scale:g}"] = {
            "input": _uri(pixels.paint_part(pair.low_res, size, window), lossless=True),
            "inputSize": [pair.low_res.shape[1], pair.low_res.shape[0]],
            "methods": [_uri(method.paint_part(pair.low_res, size, window)) for method in work.methods],
            "psnr": [_finite(psnr.get((dataset.title, truth.name, scale, method.name))) for method in work.methods],
        }
    return {
        "dataset": dataset.title,
        "image": truth.name,
        "size": [window.width, window.height],
        "truth": _uri(window.of(image) / 255),
        "scales": scales,
    }


def _finite(value: float | None) -> float | None:
    return round(value, 3) if value is not None and math.isfinite(value) else None


def _uri(image: Array, *, lossless: bool = False) -> str:
    """Floats (H, W, 3) as a WebP picture in a data URI; at a quality at which losses are hard to see enlarged."""
    levels = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "WEBP", quality=95, method=4, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode("ascii")
