"""What every model offers: two doors to the same picture.

``model.encode(image) -> features`` then ``model.fold(features, cell) -> field`` do all work that depends on the
low-resolution position alone, once. ``field.paint(rows, columns)`` answers a rectangle of a regular grid,
``field.query(coords)`` scattered queries. Features travel as arguments; a model holds no state but its parameters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from liif_cli.coords import Axis
from liif_cli.models.encoders.layers import Encoder

# Official networks are fed and answer in [-1, 1]: (v - 0.5) / 0.5.
MEAN, DEVIATION = 0.5, 0.5


class Window(NamedTuple):
    """Where a rectangle of latent codes stands in the whole image's grid of them; (0, 0) and the grid's own size for
    all of it."""

    top: int
    left: int
    image_size: tuple[int, int]  # (height, width) of the whole grid


class Operations(NamedTuple):
    """Multiplications that painting takes, but for the few that do not depend on the network's size."""

    per_code: int  # of an input pixel: to encode and to fold it
    per_pixel: int  # of a painted pixel


class Field:
    """A folded image, ready to be painted from at any scale. Values come out as colour, nominally in [0, 1], not
    clamped."""

    def paint(self, rows: Axis, columns: Axis) -> Tensor:
        """The grid of ``rows`` x ``columns``: (len(rows), len(columns), 3) float32. Needs a batch of one; keeps no
        gradients."""
        raise NotImplementedError

    def query(self, coords: Tensor) -> Tensor:
        """Scattered queries, (B, Q, 2) as (y, x) in [-1, 1], to (B, Q, 3). Differentiable."""
        raise NotImplementedError


class Model(nn.Module):
    """An encoder and the decoder that reads its features."""

    spec: dict[str, Any]
    encoder: Encoder
    mean: Tensor
    deviation: Tensor
    needs_float32 = False  # whether half precision would spoil it, on whatever device
    holds_picture = False  # whether it paints a picture of its own, whatever it is given

    def __init__(self, spec: dict[str, Any], encoder: Encoder) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION), persistent=False)

    @property
    def fold_px(self) -> int:
        """How many codes around a code :meth:`fold` reads."""
        return 0

    @property
    def code_values(self) -> int:
        """How many values a folded code holds."""
        raise NotImplementedError

    @property
    def operations(self) -> Operations:
        """What painting costs. Here: every weight is used once for every input pixel, and nothing after that."""
        return Operations(sum(parameter.numel() for parameter in self.parameters()), 0)

    @property
    def native_scale(self) -> int | None:
        """The only factor a single-scale model paints at; None for models of any scale."""
        return None

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W), float in [0, 1], to features (B, C, H, W); with an upsampling tail (B, 3, s * H, s *
        W)."""
        features: Tensor = self.encoder(self.normalise(image).to(next(self.encoder.parameters()).dtype))
        return features

    def fold(self, features: Tensor, cell: Tensor, window: Window | None = None) -> Field:
        """Features to a field that paints pixels of one size.

        ``cell`` is the size of a painted pixel, (2,) or (B, 2), relative: twice the low-resolution pixels it spans on
        each axis (``coords.Axis.cell``). ``window`` says where the features stand in a larger image; codes within
        ``fold_px`` of an inner edge of the window then miss their neighbours and must not be painted from.
        """
        raise NotImplementedError

    def normalise(self, image: Tensor) -> Tensor:
        # In float32 whatever the model's precision: eight bits of colour do not survive bfloat16's eight bits unharmed.
        return (image.float() - self.mean.float()) / self.deviation.float()

    def denormalise(self, values: Tensor) -> Tensor:
        return values.float() * self.deviation.float() + self.mean.float()


def memory_format(device: torch.device) -> torch.memory_format:
    """How images and convolutions lie in memory: channels last, a third faster in bfloat16 on a CPU; as usual on MPS,
    whose convolutions have had errors with it."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def whole_window(features: Tensor) -> Window:
    height, width = features.shape[-2:]
    return Window(0, 0, (height, width))
