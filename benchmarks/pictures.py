"""The README's picture: details of NASA's portrait of Eileen Collins (public domain, in scikit-image), two ways.

python benchmarks/pictures.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

import liif_cli

DETAILS = [(28, 85, 73, 145), (173, 50, 218, 110)]  # top, left, bottom, right, in the halved portrait
SCALE = 4
GAP = 8


def main() -> None:
    # Halved first: the portrait is soft at its own size, and what upscalers are given is small and sharp.
    small = Image.fromarray(skimage.data.astronaut()).reduce(2)
    field = liif_cli.load("default").encode(small)
    rows = []
    for top, left, bottom, right in DETAILS:
        size = ((bottom - top) * SCALE, (right - left) * SCALE)
        crop = small.resize((size[1], size[0]), Image.Resampling.BICUBIC, (left, top, right, bottom))
        painted = field.render(size=size, box=(top, left, bottom, right))
        gap = np.full((size[0], GAP, 3), 255, np.uint8)
        rows.append(np.concatenate([np.asarray(crop), gap, np.asarray(painted)], axis=1))
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    sheet = np.concatenate([rows[0], gap, rows[1]])
    target = Path(__file__).parents[1] / "docs" / "before-after.png"
    Image.fromarray(sheet).save(target, optimize=True)
    print(target, sheet.shape)


if __name__ == "__main__":
    main()
