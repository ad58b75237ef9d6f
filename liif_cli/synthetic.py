"""Pictures that no camera makes, for training: letters, lines and areas of even colour, drawn by random numbers.

Photographs show a network no edge without smoothing and no area that is exactly even, so that it answers screenshots,
computers' text and line art with ghosts beside their edges. What is drawn here is drawn finely; the truth is the mean
of what lies within each of its pixels, and so is the input, or else the input shows what is at its pixels' middles,
as lines and letters without smoothing are, or it is the truth's bicubic reduction, as with photographs.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from liif_cli.resize import pil_bicubic

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Places on each axis that are drawn: at least so many of an input's pixel, an odd number, so that one lies in the
# middle, and so many of a truth's.
FINE, FINE_OF_TRUTH = 9, 3
OVER_PHOTOGRAPH = 0.25  # the share that is drawn over a photograph, as captions are
ON_GRID = 0.6  # the share whose shapes begin and end at edges of the input's pixels, as windows' and tables' do
INPUTS = ("middles", "means", "bicubic")
INPUT_SHARES = (0.5, 0.35, 0.15)
LETTERS = string.ascii_letters + string.digits + ".,:;!?()[]{}<>/+-=*#%&@\"'"


class Synthetic(NamedTuple):
    """A sample, uint8."""

    low_res: Pixels  # (side, side, 3)
    truth: Pixels  # (truth_side, truth_side, 3)


def draw_sample(draw: np.random.Generator, side: int, truth_side: int, photograph: Callable[[], Pixels]) -> Synthetic:
    """A sample of ``side`` pixels and its truth. ``photograph`` gives a crop of the truth's size, to be drawn over."""
    pen = _Pen(draw, side, fine=max(FINE, math.ceil(FINE_OF_TRUTH * truth_side / side)) | 1)
    over = photograph() if draw.random() < OVER_PHOTOGRAPH else np.full((truth_side, truth_side, 3), pen.colour())
    behind = np.ascontiguousarray(over, dtype=np.uint8)
    for _ in range(int(math.exp(draw.uniform(math.log(4), math.log(24))))):
        pen.shape()
    truth = _over(behind, pen.means(truth_side))
    seen_as = draw.choice(INPUTS, p=INPUT_SHARES)
    if seen_as == "bicubic":
        return Synthetic(pil_bicubic(truth, (side, side)), truth)
    shapes = pen.middles() if seen_as == "middles" else pen.means(side)
    return Synthetic(_over(pil_bicubic(behind, (side, side)), shapes), truth)


def _over(behind: Pixels, shapes: Image.Image) -> Pixels:
    picture = Image.fromarray(behind).convert("RGBA")
    picture.alpha_composite(shapes)
    return np.array(picture.convert("RGB"))


class _Pen:
    """Draws shapes, in few colours, on a transparent square ``side`` times ``fine`` pixels wide."""

    def __init__(self, draw: np.random.Generator, side: int, fine: int) -> None:
        self.draw = draw
        self.side = side
        self.fine = fine
        self.canvas = Image.new("RGBA", (side * fine, side * fine))
        self.image = ImageDraw.Draw(self.canvas)
        self.image.fontmode = "1"  # letters without smoothed edges, as all else is drawn
        self.step = fine if draw.random() < ON_GRID else 1
        greys = draw.random() < 0.4
        palette = draw.integers(0, 256, (int(draw.integers(2, 6)), 1 if greys else 3)) * np.ones(3, int)
        if draw.random() < 0.5:
            palette[:2] = [[0], [255]] if draw.random() < 0.8 else [[32], [224]]
        self.palette: list[Colour] = [(red, green, blue) for red, green, blue in palette.tolist()]

    def means(self, side: int) -> Image.Image:
        """The mean of each of ``side`` by ``side`` pixels, transparent where nothing is drawn."""
        # Premultiplied, as means of colours are taken.
        sums = np.asarray(self.canvas.convert("RGBa"), np.float64)
        for axis in (0, 1):
            sums = _sums_between(sums, np.arange(side + 1) * (self.canvas.width / side), axis)
        means = sums * (side / self.canvas.width) ** 2
        return Image.frombytes("RGBa", (side, side), np.rint(means).astype(np.uint8).tobytes()).convert("RGBA")

    def middles(self) -> Image.Image:
        """What is at the middle of each of the input's pixels."""
        pixels = np.asarray(self.canvas)[self.fine // 2 :: self.fine, self.fine // 2 :: self.fine]
        return Image.fromarray(np.ascontiguousarray(pixels))

    def colour(self) -> Colour:
        return self.palette[int(self.draw.integers(len(self.palette)))]

    def shape(self) -> None:
        shapes = (self._text, self._text, self._box, self._line, self._line, self._round, self._polygon, self._stripes)
        shapes[int(self.draw.integers(len(shapes)))]()

    def _size(self, least: float, most: float) -> int:
        """A length between so many of the input's pixels, small ones as often as large ones; at least one place."""
        length = math.exp(self.draw.uniform(math.log(least), math.log(most))) * self.fine
        return max(1, round(length / self.step)) * self.step

    def _place(self) -> tuple[int, int]:
        places = len(range(0, self.canvas.width, self.step))
        left, top = (int(place) * self.step for place in self.draw.integers(-places // 8, places, 2))
        return left, top

    def _frame(self) -> tuple[int, int, int, int]:
        left, top = self._place()
        # PIL's corners are both within.
        return left, top, left + self._size(1, self.side) - 1, top + self._size(1, self.side) - 1

    def _fill(self) -> dict[str, Colour | int | None]:
        if self.draw.random() < 0.5:
            return {"fill": self.colour()}
        fill = self.colour() if self.draw.random() < 0.5 else None
        return {"outline": self.colour(), "width": self._size(1, 3), "fill": fill}

    def _text(self) -> None:
        draw = self.draw
        size = round(math.exp(draw.uniform(math.log(7), math.log(max(8, self.side))))) * self.fine
        bold = int(draw.integers(0, self.fine // 2)) if draw.random() < 0.5 else 0
        (left, top), colour = self._place(), self.colour()
        for line in range(int(draw.integers(1, 5))):
            count = min(int(draw.integers(1, 16)), 1 + 3 * self.canvas.width // size)  # no more than fit
            words = "".join(draw.choice(list(LETTERS + "    "), count))
            # Bold letters are drawn twice: what Pillow draws with a stroke has smoothed edges.
            for shift in {0, bold}:
                self.image.text((left + shift, top + line * size), words, colour, _font(size))

    def _box(self) -> None:
        self.image.rectangle(self._frame(), **self._fill())  # type: ignore[arg-type]

    def _round(self) -> None:
        frame = self._frame()
        if self.draw.random() < 0.3:
            start = self.draw.uniform(0, 360)
            self.image.arc(frame, start, start + self.draw.uniform(20, 300), self.colour(), self._size(1, 4))
        elif self.draw.random() < 0.3:
            self.image.rounded_rectangle(frame, self._size(1, 6), **self._fill())  # type: ignore[arg-type]
        else:
            self.image.ellipse(frame, **self._fill())  # type: ignore[arg-type]

    def _line(self) -> None:
        start, width = self._place(), self._size(1, 4)
        if self.draw.random() < 0.5:  # across or down
            length = self._size(2, 2 * self.side)
            across = self.draw.random() < 0.5
            end = (length, width) if across else (width, length)
            self.image.rectangle((*start, start[0] + end[0] - 1, start[1] + end[1] - 1), fill=self.colour())
        else:
            points = [start, *(self._place() for _ in range(int(self.draw.integers(1, 4))))]
            self.image.line(points, self.colour(), width, joint="curve")

    def _polygon(self) -> None:
        self.image.polygon([self._place() for _ in range(int(self.draw.integers(3, 7)))], self.colour())

    def _stripes(self) -> None:
        """A grating, or a grid of one."""
        left, top, right, bottom = self._frame()
        width, gap, colour = self._size(1, 4), self._size(1, 6), self.colour()
        across, down = self.draw.random() < 0.6, self.draw.random() < 0.6
        if across or not down:
            for row in range(top, bottom, width + gap):
                self.image.rectangle((left, row, right, row + width - 1), fill=colour)
        if down:
            for column in range(left, right, width + gap):
                self.image.rectangle((column, top, column + width - 1, bottom), fill=colour)


def _sums_between(values: NDArray[np.float64], edges: NDArray[np.floating[Any]], axis: int) -> NDArray[np.float64]:
    """Sums of what lies between one edge and the next; of places that an edge divides, a part. Pillow's box filter does
    not divide them."""
    sums = np.insert(values.cumsum(axis=axis), 0, 0, axis=axis)
    whole = np.minimum(edges.astype(int), values.shape[axis] - 1)
    before = sums.take(whole, axis)
    shape = [-1 if number == axis else 1 for number in range(values.ndim)]
    before += (sums.take(whole + 1, axis) - before) * (edges - whole).reshape(shape)
    result: NDArray[np.float64] = np.diff(before, axis=axis)
    return result


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
