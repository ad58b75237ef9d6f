"""Where the bundled models fail: inputs that are not clean, the pictures on which the first gains least, and pictures
that a computer drew; the tables of weights/README.md.

    python benchmarks/failures.py --data DIR        Set14 at x3, in minutes

PSNR on luma against the clean truth, outputs rounded to 8 bits as `liif upscale` writes them, bicubic by Pillow. Of
drawn pictures there is no truth: what is measured is how far outputs leave the range of the nine input pixels around,
as these were before compression.
"""

from __future__ import annotations

import argparse
import io
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import liif_cli
from liif_cli.benchmarks import find
from liif_cli.jpeg import through_jpeg
from liif_cli.metrics import psnr
from liif_cli.protocol import Protocol
from liif_cli.resize import pil_bicubic

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


def stored(file_format: str, quality: int) -> Callable[[Pixels], Pixels]:
    """To WebP or AVIF and back."""

    def degrade(image: Pixels) -> Pixels:
        Image.fromarray(image).save(file := io.BytesIO(), file_format, quality=quality)
        return np.asarray(Image.open(file).convert("RGB"))

    return degrade


INPUTS: dict[str, Callable[[Pixels], Pixels]] = {
    "clean": lambda image: image,
    "noise of 5 levels (standard deviation)": noisy(5),
    "noise of 15 levels": noisy(15),
    "JPEG of quality 90": compressed(90),
    "JPEG of quality 75": compressed(75),
    "JPEG of quality 50": compressed(50),
    "WebP of quality 90": stored("WEBP", 90),
    "WebP of quality 75": stored("WEBP", 75),
    "AVIF of quality 60": stored("AVIF", 60),
}


def text() -> Pixels:
    """Letters of pixels, as terminals had them, black on white; a typeface that no model was trained with."""
    image = Image.new("RGB", (320, 160), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default_imagefont()
    for row in range(12):
        pen.text((4, 4 + 13 * row), string.printable[6 * row : 6 * row + 52].strip(), "black", font)
    return np.asarray(image)


def screen() -> Pixels:
    """Smoothed letters and areas of even colour, mostly light on dark."""
    image = Image.new("RGB", (320, 160), (30, 30, 36))
    pen = ImageDraw.Draw(image)
    top = 4
    for size in (10, 13, 18):
        pen.text((4, top), "def paint(self, rows): return out", (220, 220, 220), ImageFont.load_default(size))
        top += round(size * 1.4)
    pen.rectangle((4, top, 310, top + 20), (60, 60, 80))
    pen.text((8, top + 3), "OK   Cancel   Apply", "white", ImageFont.load_default(12))
    for number in range(8):
        colour = tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())
        pen.rectangle((4 + number * 38, top + 26, 34 + number * 38, top + 56), colour)
    return np.asarray(image)


def lines() -> Pixels:
    """Lines and arcs without smoothed edges."""
    image = Image.new("RGB", (320, 240), (220, 220, 220))
    pen = ImageDraw.Draw(image)
    draw = np.random.default_rng(5)
    for _ in range(40):
        points = [(int(x), int(y)) for x, y in zip(draw.integers(0, 320, 3), draw.integers(0, 240, 3), strict=True)]
        pen.line(points, (40, 40, 40), int(draw.integers(1, 3)))
    for step in range(0, 60, 3):
        start, end = draw.integers(0, 360, 2).tolist()
        pen.arc((20 + step, 20 + step, 200 - step, 180 - step), start, end, (40, 40, 40))
    return np.asarray(image)


DRAWN = {"letters of pixels": text, "a screen": screen, "lines without smoothing": lines}


def beyond(low_res: Pixels, output: Pixels) -> float:
    """How far, in levels, the colours of an output leave the range of the nine input pixels around; the mean."""
    padded = np.pad(low_res, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(int)
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    rows, columns = (
        (np.arange(wanted) * n // wanted) for wanted, n in zip(output.shape[:2], low_res.shape[:2], strict=True)
    )
    least, most = (np.take(np.take(each, rows, 0), columns, 1) for each in (around.min((3, 4)), around.max((3, 4))))
    return float(np.maximum(np.maximum(output - most, least - output), 0).mean())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Where the bundled models fail, measured on Set14 at x3.")
    parser.add_argument("--data", type=Path, required=True, help="the folder that has Set14")
    parser.add_argument("-m", "--model", nargs="+", default=["liif-light", "liif-jpeg", "liif-drawn"])
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
            outputs.append(pil_bicubic(low_res, (height, width)))
            scores[picture] = [psnr(output, pair.high_res, border=SCALE, channel="y") for output in outputs]
        print(row(name, *np.mean(list(scores.values()), axis=0)))
        of_clean = of_clean or scores

    print(f"\n| clean picture | {head}")
    for picture, of_picture in sorted(of_clean.items(), key=lambda item: item[1][0] - item[1][-1]):
        print(row(picture, *of_picture))

    print(f"\n| drawn, beyond its range | {head}")
    for name, draw in DRAWN.items():
        clean = draw()
        for kind in ("clean", "JPEG of quality 90", "JPEG of quality 75"):
            low_res = INPUTS[kind](clean)
            height, width = (SCALE * side for side in low_res.shape[:2])
            outputs = [model.upscale(low_res, size=(height, width)) for model in models]
            outputs.append(pil_bicubic(low_res, (height, width)))
            said = name if kind == "clean" else f"{name}, {kind}"
            print(row(said, *(beyond(clean, output) for output in outputs)))


def row(name: str, *values: float) -> str:
    """A line of a table."""
    return f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |"


if __name__ == "__main__":
    main()
