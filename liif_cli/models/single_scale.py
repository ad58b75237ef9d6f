"""Single-scale networks (EDSR, RDN, RCAN with their own upsampling tails), seen through the same two doors.

The encoder already answers with the enlarged picture; its field is that raster, read at the nearest pixel, as the
official code does. Scales other than the network's own are for whoever paints to resample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liif_cli.coords import Axis, corners, to_low_res
from liif_cli.models.base import Field, Model, Window
from liif_cli.models.encoders.layers import Encoder


class SingleScale(Model):
    def __init__(self, spec: dict[str, Any], encoder: Encoder) -> None:
        super().__init__(spec, encoder)

    @property
    def native_scale(self) -> int | None:
        return self.encoder.scale

    @property
    def code_values(self) -> int:
        return 3 * self.encoder.scale**2 * 2  # colours in float32 whatever the features' precision

    def fold(self, features: Tensor, cell: Tensor, window: Window | None = None) -> Field:
        scale = self.encoder.scale
        if window is None:
            window = Window(0, 0, (features.shape[-2] // scale, features.shape[-1] // scale))
        return RasterField(self.denormalise(features), scale, window)


class RasterField(Field):
    def __init__(self, raster: Tensor, scale: int, window: Window) -> None:
        self.raster = raster  # (B, 3, s * h, s * w)
        self.scale = scale
        self.window = window

    def _nearest(self, low_res: Tensor, offset: int, count: int) -> Tensor:
        position = (low_res + 0.5) * self.scale - 0.5
        return corners(position, count * self.scale, ensemble=False).code[0] - offset * self.scale

    def query(self, coords: Tensor) -> Tensor:
        top, left, (height, width) = self.window
        rows = self._nearest(to_low_res(coords[..., 0], height), top, height)
        columns = self._nearest(to_low_res(coords[..., 1], width), left, width)
        sample = torch.arange(len(coords), device=coords.device)[:, None]
        return self.raster[sample, :, rows, columns]

    @torch.no_grad()
    def paint(self, rows: Axis, columns: Axis) -> Tensor:
        top, left, (height, width) = self.window
        device = self.raster.device
        row_index = self._nearest(rows.position, top, height).to(device)
        column_index = self._nearest(columns.position, left, width).to(device)
        return self.raster[0][:, row_index[:, None], column_index].permute(1, 2, 0)
