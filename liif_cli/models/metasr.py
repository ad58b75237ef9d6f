"""MetaSR (Hu et al., "Meta-SR: A Magnification-Arbitrary Network for Super-Resolution", CVPR 2019) as the LIIF paper
compares with it.

An MLP turns where a query falls in its code's pixel, and the scale, into a 576 x 3 matrix that is applied to the code's
unfolded features. Matrix and features meet linearly, so the MLP's last layer folds into a convolution: each code
carries, for each colour, a vector over the MLP's hidden units, and a query is one dot product of it with those units.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from liif_cli.coords import Axis, to_low_res, top_left_corner
from liif_cli.models.base import Field, Model, Window, whole_window
from liif_cli.models.encoders.layers import Encoder
from liif_cli.models.mlp import MLP

HIDDEN = 256
CPU_BLOCK_QUERIES, GPU_BLOCK_QUERIES = 2**11, 2**17


class MetaSR(Model):
    def __init__(self, spec: dict[str, Any], encoder: Encoder) -> None:
        super().__init__(spec, encoder)
        self.imnet = MLP(3, encoder.out_dim * 9 * 3, [HIDDEN])

    @property
    def fold_px(self) -> int:
        return 1

    @property
    def code_values(self) -> int:
        return 3 * (HIDDEN + 1)

    def fold(self, features: Tensor, cell: Tensor, window: Window | None = None) -> Field:
        first, last = self.imnet.linears
        # (features * 9 * colours, hidden) to one filter for each colour and hidden unit, and one more for the bias.
        with_bias = torch.cat([last.weight, last.bias[:, None]], dim=1)
        kernel = with_bias.view(self.encoder.out_dim, 3, 3, 3, HIDDEN + 1).permute(3, 4, 0, 1, 2).flatten(0, 1)
        codes = F.conv2d(features.to(kernel.dtype), kernel, padding=1)
        batch, _, height, width = codes.shape
        codes = codes.permute(0, 2, 3, 1).reshape(batch, height, width, 3, HIDDEN + 1)
        # The third input is 1 / scale, half a relative cell; the official code takes the rows' for both axes.
        rate = cell.reshape(-1, 2)[:, :1] / 2
        constant = first.bias + rate.to(first.weight) * first.weight[:, 2]
        return MetaSRField(
            self, codes, first.weight[:, :2], constant, cell.reshape(-1, 2), window or whole_window(features)
        )


class MetaSRField(Field):
    def __init__(
        self, model: MetaSR, codes: Tensor, of_relative: Tensor, constant: Tensor, cell: Tensor, window: Window
    ) -> None:
        self.model = model
        self.codes = codes  # (B, h, w, 3, hidden + 1)
        self.of_relative = of_relative  # (hidden, 2)
        self.constant = constant  # (B or 1, hidden)
        self.cell = cell  # (B or 1, 2)
        self.window = window

    def query(self, coords: Tensor) -> Tensor:
        batch, height, width = self.codes.shape[:3]
        top, left, (full_height, full_width) = self.window
        cell = self.cell.to(coords)
        rows = top_left_corner(to_low_res(coords[..., 0], full_height), cell[:, :1], full_height)
        columns = top_left_corner(to_low_res(coords[..., 1], full_width), cell[:, 1:], full_width)
        sample = torch.arange(batch, device=coords.device).view(batch, 1)
        index = (sample * height + rows.code[0] - top) * width + columns.code[0] - left
        relative = torch.stack([rows.relative[0], columns.relative[0]], dim=-1).to(self.codes.dtype)
        hidden = torch.relu(F.linear(relative, self.of_relative) + self.constant[:, None])
        code = self.codes.flatten(0, 2).index_select(0, index.flatten()).view(*index.shape, 3, -1)
        # The sum in float32: eight bits of colour do not survive bfloat16's eight bits.
        values = (code[..., :-1] @ hidden[..., None])[..., 0].float() + code[..., -1].float()
        return self.model.denormalise(values)

    @torch.no_grad()
    def paint(self, rows: Axis, columns: Axis) -> Tensor:
        device, dtype = self.codes.device, self.codes.dtype
        top, left, (full_height, full_width) = self.window
        vertical = top_left_corner(rows.position, rows.cell, full_height)
        horizontal = top_left_corner(columns.position, columns.cell, full_width)
        row_index, column_index = ((vertical.code[0] - top).to(device), (horizontal.code[0] - left).to(device))
        row_part = (vertical.relative[0].float().to(device)[:, None] * self.of_relative[:, 0].float()) + self.constant[
            0
        ].float()
        column_part = horizontal.relative[0].float().to(device)[:, None] * self.of_relative[:, 1].float()
        out = torch.empty(len(row_index), len(column_index), 3, dtype=torch.float32, device=device)
        queries = CPU_BLOCK_QUERIES if device.type == "cpu" else GPU_BLOCK_QUERIES
        height = max(1, queries // len(column_index))
        for start in range(0, len(row_index), height):
            block = slice(start, start + height)
            hidden = (row_part[block, None] + column_part).relu_().to(dtype)
            code = self.codes[0, row_index[block, None], column_index]
            values = (code[..., :-1] @ hidden[..., None])[..., 0].float() + code[..., -1].float()
            out[block] = self.model.denormalise(values)
        return out
