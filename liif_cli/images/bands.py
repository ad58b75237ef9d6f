"""The bands of one picture, counted as they come."""

import numpy as np

from liif_cli.images.picture import Array, Picture


class Bands:
    """Where rows are expected: what shape and type they have, and how many have come."""

    def __init__(self, size: tuple[int, int], like: Picture) -> None:
        self.height, self.width = size
        self.channels = like.channels
        self.dtype = like.pixels.dtype
        self.done = 0

    def check(self, rows: Array) -> Array:
        """Return the rows, contiguous, and count them; ValueError where they do not fit."""
        if rows.ndim != 3 or rows.shape[1:] != (self.width, self.channels) or rows.dtype != self.dtype:
            raise ValueError(
                f"a band is (rows, {self.width}, {self.channels}) {self.dtype}, not {rows.shape} {rows.dtype}"
            )
        if self.done + rows.shape[0] > self.height:
            raise ValueError(f"{self.done + rows.shape[0]} rows for a picture of {self.height}")
        self.done += rows.shape[0]
        return np.ascontiguousarray(rows)

    def check_complete(self) -> None:
        """Raise ValueError where rows are missing: half a picture must not be taken for a whole one."""
        if self.done != self.height:
            raise ValueError(f"{self.done} of {self.height} rows were written")
