"""The pictures of the README and of the model card, from photographs in the public domain that scikit-image brings.

    python benchmarks/pictures.py

docs/before-after.png: details of NASA's portrait of Eileen Collins, bicubic and liif.
docs/scales.png: details at x2.7, x4 and x8: bicubic, liif, the truth.
docs/jpeg.png: details of the portrait, saved as JPEG before: bicubic, liif-light, liif-jpeg.
docs/drawn.png: details of what a computer drew, at x4: bicubic, liif-light, liif-drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import skimage.data
from failures import lines, text
from PIL import Image

import liif_cli
from liif_cli.jpeg import through_jpeg
from liif_cli.resize import pil_bicubic

DOCS = Path(__file__).parents[1] / "docs"
GAP = 8
PORTRAIT_SCALE = 4
PORTRAIT_DETAILS = [(28, 85, 73, 145), (173, 50, 218, 110)]  # top, left, bottom, right, in the halved portrait
JPEG_QUALITY = 75
DETAIL_PX = 288  # side of a detail of the truth
# Chelsea the cat (CC0, Stefan van der Walt), a cup of coffee (CC0, Rachel Michetti), the portrait again (NASA): scale,
# picture, top and left of the detail.
DETAILS = [
    (2.7, skimage.data.chelsea, 8, 60),
    (4, skimage.data.coffee, 60, 240),
    (8, skimage.data.astronaut, 0, 110),
]


def beside(*pictures: Image.Image | np.ndarray) -> np.ndarray:
    """Pictures of one height, left to right."""
    gap = np.full((np.asarray(pictures[0]).shape[0], GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, np.asarray(picture))]
    return np.concatenate(parts[1:], axis=1)


def save(rows: list[np.ndarray], name: str) -> None:
    """Rows of one width, top to bottom, as a file."""
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    sheet = np.concatenate([part for row in rows for part in (gap, row)][1:])
    Image.fromarray(sheet).save(DOCS / name, optimize=True)
    print(DOCS / name, sheet.shape)


def portrait() -> Image.Image:
    # Halved first: the portrait is soft at its own size, and what upscalers are given is small and sharp.
    return Image.fromarray(skimage.data.astronaut()).reduce(2)


def details(small: Image.Image, models: list[liif_cli.upscaler.Upscaler], name: str) -> None:
    """Details of the portrait, enlarged by bicubic and by each model."""
    fields = [model.encode(small) for model in models]
    rows = []
    for top, left, bottom, right in PORTRAIT_DETAILS:
        size = ((bottom - top) * PORTRAIT_SCALE, (right - left) * PORTRAIT_SCALE)
        crop = small.resize((size[1], size[0]), Image.Resampling.BICUBIC, (left, top, right, bottom))
        rows.append(beside(crop, *(field.render(size=size, box=(top, left, bottom, right)) for field in fields)))
    save(rows, name)


def scales(model: liif_cli.upscaler.Upscaler) -> None:
    rows = []
    for scale, load, top, left in DETAILS:
        truth = load()
        height, width = truth.shape[:2]
        small = Image.fromarray(truth).resize((round(width / scale), round(height / scale)), Image.Resampling.BICUBIC)
        detail = (slice(top, top + DETAIL_PX), slice(left, left + DETAIL_PX))
        bicubic = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        painted = np.asarray(model.upscale(small, size=(height, width)))
        rows.append(beside(bicubic[detail], painted[detail], truth[detail]))
    save(rows, "scales.png")


def drawn(models: list[liif_cli.upscaler.Upscaler]) -> None:
    rows = []
    for picture, top, left in ((text(), 0, 0), (lines(), 70, 110)):
        detail = np.ascontiguousarray(picture[top : top + 48, left : left + 96])
        size = 4 * 48, 4 * 96
        rows.append(
            beside(pil_bicubic(detail, size), *(np.asarray(model.upscale(detail, size=size)) for model in models))
        )
    save(rows, "drawn.png")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = liif_cli.load("default")
    details(portrait(), [model], "before-after.png")
    scales(model)
    coarse = Image.fromarray(through_jpeg(np.asarray(portrait()), JPEG_QUALITY))
    details(coarse, [model, liif_cli.load("liif-jpeg")], "jpeg.png")
    drawn([model, liif_cli.load("liif-drawn")])


if __name__ == "__main__":
    main()
