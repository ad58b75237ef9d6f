"""How pictures are scored: the published protocol as the default, and every departure from it by name.

The published protocol (Chen, Liu, Wang 2021, and the code that goes with it):

                     DIV2K validation       Set5, Set14, B100, Urban100, and any other folder
    colour           RGB                    luma (Y) of the difference
    border shaved    scale + 6              scale; a fraction is rounded up
    low-res input    x2, x3, x4: the set's own files, by MATLAB's bicubic where there are none
                     other scales: floor(size / scale) pixels, PIL's bicubic, 8 bits
    scored           clamped to [0, 1], not rounded; PSNR of each picture, then the mean

Interpolation by a fixed kernel is scored as the published tables score it, from SRCNN (Dong et al. 2014) on: where luma
counts, the truth's luma is rounded to 8 bits, reduced with MATLAB's bicubic and enlarged with the kernel, both without
rounding, and rounded to 8 bits at the end. That gives bicubic its 33.66, 30.39 and 28.42 dB on Set5. Fed the models'
8-bit RGB files and not rounded, it scores 0.01 to 0.03 dB more, and 0.1 on Set14, one of whose pictures has one
channel: ``rounding="none"``.

Pictures of one channel are read as RGB, so that their luma has studio range like that of the others; for kernels, as in
those tables, their levels count as they are.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from liif_cli.errors import UsageError

COLORS = ("auto", "y", "rgb")
ROUNDINGS = ("paper", "none", "8bit")
DEGRADATIONS = ("paper", "matlab", "pil", "torch")
MATLAB_SCALES = (2.0, 3.0, 4.0)  # for which data sets come with low-resolution files


@dataclass(frozen=True)
class Protocol:
    """What is compared with what. The default is the published one. Raises UsageError for unknown words."""

    color: str = "auto"  # auto: as the data set has it
    border: int | None = None  # pixels shaved off each side; None: as the data set has it
    rounding: str = "paper"  # none: of nothing; 8bit: of every output, as the saved file would score
    degradation: str = "paper"  # otherwise no files are used, all low-resolution pictures are made
    jpeg: int | None = None  # the quality of the JPEG files that low-resolution pictures are put through

    def __post_init__(self) -> None:
        for name, known in (("color", COLORS), ("rounding", ROUNDINGS), ("degradation", DEGRADATIONS)):
            if getattr(self, name) not in known:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}: use {', '.join(known)}")
        if self.border is not None and self.border < 0:
            raise UsageError(f"a border of {self.border} pixels: it must be 0 or more")
        if self.jpeg is not None and not 1 <= self.jpeg <= 100:
            raise UsageError(f"a JPEG quality of {self.jpeg}: it is 1 to 100")

    @property
    def is_published(self) -> bool:
        """Whether scores can be held against published ones."""
        return self == Protocol()

    def channel(self, rgb_set: bool) -> str:
        """ "y" or "rgb", for a data set that is by itself scored in RGB or not."""
        return self.color if self.color != "auto" else "rgb" if rgb_set else "y"

    def shave(self, scale: float, rgb_set: bool) -> int:
        """Pixels shaved off each side."""
        if self.border is not None:
            return self.border
        return math.ceil(scale) + (6 if rgb_set else 0)

    def reduction(self, scale: float) -> str:
        """What makes low-resolution pictures where there are no files: "matlab", "pil" or "torch"."""
        if self.degradation != "paper":
            return self.degradation
        return "matlab" if scale in MATLAB_SCALES else "pil"

    def kernels_on_luma(self, channel: str) -> bool:
        """Whether interpolation is scored by the recipe of the published tables."""
        return channel == "y" and self == dataclasses.replace(Protocol(), color=self.color, border=self.border)

    def as_json(self) -> dict[str, Any]:
        """Plain values, "paper" by name."""
        return {"name": "paper" if self.is_published else "custom", **dataclasses.asdict(self)}
