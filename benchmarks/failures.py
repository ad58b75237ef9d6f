"""Where the bundled models fail: inputs that are not clean, and the pictures on which the first gains least; the tables
of weights/README.md.

    python benchmarks/failures.py --data DIR        Set14 at x3, in a minute

PSNR on luma against the clean truth, outputs rounded to 8 bits as `liif upscale` writes them, bicubic by Pillow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import liif_cli
from liif_cli.benchmarks import find
from liif_cli.jpeg import through_jpeg
from liif_cli.metrics import psnr
from liif_cli.protocol import Protocol

SCALE = 3
Pixels = NDArray[np.uint8]


def noisy(levels: float) -> Callable[[Pixels], Pixels]:
    """Adds Gaussian noise of this standard deviation, the same to every picture of a size."""

    def degrade(image: Pixels) -> Pixels:
        noise = np.random.default_rng(0).normal(0, levels, image.shape)
        return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)

    return degrade


def compressed(quality: int) -> Callable[[Pixels], Pixels]:
    """To JPEG and back."""
    return partial(through_jpeg, quality=quality)


INPUTS: dict[str, Callable[[Pixels], Pixels]] = {
    "clean": lambda image: image,
    "noise of 5 levels (standard deviation)": noisy(5),
    "noise of 15 levels": noisy(15),
    "JPEG of quality 90": compressed(90),
    "JPEG of quality 75": compressed(75),
    "JPEG of quality 50": compressed(50),
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Where the bundled models fail, measured on Set14 at x3.")
    parser.add_argument("--data", type=Path, required=True, help="the folder that has Set14")
    parser.add_argument("-m", "--model", nargs="+", default=["liif-light", "liif-jpeg"])
    arguments = parser.parse_args()
    models = [liif_cli.load(name, precision="float32") for name in arguments.model]
    dataset = find("set14", [arguments.data])
    pairs = {truth.name: dataset.pair(truth, SCALE, Protocol()) for truth in dataset.truths}

    head = f"{' | '.join(arguments.model)} | bicubic |\n|{'---|' * (len(models) + 2)}"
    print(f"| input | {head}")
    of_clean = {}
    for name, degrade in INPUTS.items():
        scores = {}
        for picture, pair in pairs.items():
            low_res = degrade(pair.low_res)
            height, width = pair.high_res.shape[:2]
            outputs = [model.upscale(low_res, size=(height, width)) for model in models]
            outputs.append(np.asarray(Image.fromarray(low_res).resize((width, height), Image.Resampling.BICUBIC)))
            scores[picture] = [psnr(output, pair.high_res, border=SCALE, channel="y") for output in outputs]
        print(row(name, *np.mean(list(scores.values()), axis=0)))
        of_clean = of_clean or scores

    print(f"\n| clean picture | {head}")
    for picture, of_picture in sorted(of_clean.items(), key=lambda item: item[1][0] - item[1][-1]):
        print(row(picture, *of_picture))


def row(name: str, *values: float) -> str:
    """A line of a table."""
    return f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |"


if __name__ == "__main__":
    main()
