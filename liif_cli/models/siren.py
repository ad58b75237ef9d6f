"""One picture as one network: SIREN (Sitzmann et al., "Implicit Neural Representations with Periodic Activation
Functions", NeurIPS 2020), which the LIIF paper compares with as "1-SIREN".

There is no encoder: the picture that was fitted is in the parameters. Whatever picture is given, that one is painted,
stretched over it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from liif_cli.coords import Axis
from liif_cli.models.base import Field, Model, Operations, Window, whole_window
from liif_cli.models.encoders.layers import Encoder

CPU_BLOCK_QUERIES, GPU_BLOCK_QUERIES = 2**12, 2**18


class NoEncoder(Encoder):
    """Answers with one channel of zeros: the places of an image, and nothing of what is in it."""

    out_dim = 1

    def forward(self, image: Tensor) -> Tensor:
        return torch.zeros_like(image[:, :1])

    @property
    def held_channels(self) -> int:
        return 2


class Siren(Model):
    """Linear layers with ``sin(omega x)`` between them, from a place in [-1, 1] to a colour."""

    holds_picture = True
    needs_float32 = True  # eight bits of a place are a pixel of 512, and of a sine's argument they are nearly nothing

    def __init__(self, spec: dict[str, Any], hidden: Sequence[int], omega: float) -> None:
        super().__init__(spec, NoEncoder())
        self.omega = omega
        widths = [2, *hidden, 3]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        with torch.no_grad():  # section 3.2: every layer's input is spread alike
            for number, layer in enumerate(self.linears):
                inputs = layer.in_features
                bound = 1 / inputs if number == 0 else math.sqrt(6 / inputs) / omega
                layer.weight.uniform_(-bound, bound)

    @property
    def linears(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @property
    def operations(self) -> Operations:
        return Operations(0, sum(layer.weight.numel() for layer in self.linears))

    @property
    def code_values(self) -> int:
        return 1

    def encode(self, image: Tensor) -> Tensor:
        features: Tensor = self.encoder(image.to(self.linears[0].weight.dtype))
        return features

    def fold(self, features: Tensor, cell: Tensor, window: Window | None = None) -> Field:
        return SirenField(self, window or whole_window(features))

    def colours(self, coords: Tensor) -> Tensor:
        """Places (..., 2) in [-1, 1] to colours (..., 3)."""
        *hidden, last = self.linears
        x = coords.to(last.weight.dtype)
        for layer in hidden:
            x = torch.sin(self.omega * layer(x))
        return self.denormalise(last(x))


class SirenField(Field):
    def __init__(self, model: Siren, window: Window) -> None:
        self.model = model
        self.window = window

    def query(self, coords: Tensor) -> Tensor:
        return self.model.colours(coords)

    @torch.no_grad()
    def paint(self, rows: Axis, columns: Axis) -> Tensor:
        device = self.model.linears[0].weight.device
        # From low-resolution pixels to [-1, 1].
        places = [
            ((2 * axis.position + 1) / count - 1).float()
            for axis, count in zip((rows, columns), self.window.image_size, strict=True)
        ]
        out = torch.empty(len(places[0]), len(places[1]), 3, dtype=torch.float32, device=device)
        queries = CPU_BLOCK_QUERIES if device.type == "cpu" else GPU_BLOCK_QUERIES
        height = max(1, queries // len(places[1]))
        for top in range(0, len(places[0]), height):
            grid = torch.meshgrid(places[0][top : top + height], places[1], indexing="ij")
            out[top : top + height] = self.model.colours(torch.stack(grid, dim=-1).to(device))
        return out
