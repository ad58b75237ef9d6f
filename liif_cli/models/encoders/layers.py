"""Pieces the encoders share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from liif_cli.errors import ModelError
from liif_cli.models.decoding import relu_


def conv3x3(channels_in: int, channels_out: int, size: int = 3) -> nn.Conv2d:
    """A convolution that keeps the size: zeros around the image."""
    return nn.Conv2d(channels_in, channels_out, size, padding=size // 2)


class ReLU(nn.Module):
    """In place; without gradients by ``decoding.relu_``, in bfloat16 in half to a fifth of the time."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu_() if torch.is_grad_enabled() else relu_(x)


def upsampler(scale: int, channels: int) -> nn.Sequential:
    """Sub-pixel convolutions (Shi et al., CVPR 2016) that enlarge ``channels`` maps by ``scale``: a power of two or
    3."""
    if scale == 3:
        return nn.Sequential(conv3x3(channels, 9 * channels), nn.PixelShuffle(3))
    steps = int(math.log2(scale)) if scale >= 2 else 0
    if 2**steps != scale or not isinstance(scale, int):
        raise ModelError(f"an upsampling tail of x{scale} is not defined: use 2, 3, 4 or another power of two")
    return nn.Sequential(*(m for _ in range(steps) for m in (conv3x3(channels, 4 * channels), nn.PixelShuffle(2))))


class UnusedMeanShift(nn.Module):
    """Official EDSR and RCAN checkpoints carry the tensors of a mean shift that their network never applies. They are
    kept so that a checkpoint can be read, and written again, with strict keys."""

    def __init__(self, colours: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(colours).view(colours, colours, 1, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(colours), requires_grad=False)


class Encoder(nn.Module):
    """An image becomes features: (B, 3, H, W), normalised to [-1, 1], to (B, out_dim, scale * H, scale * W).

    ``scale`` is 1 for an encoder that feeds a decoder; with an upsampling tail it is the factor of the tail and
    ``out_dim`` is 3.
    """

    out_dim: int
    scale: int = 1

    def forward(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def halo_px(self) -> int:
        """How far, in input pixels, one feature sees. Every convolution with a footprint of these networks stands in
        one chain, so their reaches add up; those of the tail work on smaller pixels."""
        reach, pixel = 0.0, 1.0
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                reach += (module.kernel_size[0] // 2) * pixel
            elif isinstance(module, nn.PixelShuffle):
                pixel /= module.upscale_factor
        return math.ceil(reach)

    @property
    def held_channels(self) -> int:
        """Most values held at once for an input pixel while encoding, without gradients: a bound that plans are made
        with."""
        raise NotImplementedError


def held_by_chain(channels: int, scale: int) -> int:
    """Values an input pixel holds in a chain of residual blocks with an upsampling tail: the outer skip, a block's own,
    and what goes in and out of a convolution; in the tail, what the last shuffle reads and writes."""
    return max(5 * channels, 3 * channels * scale * scale if scale > 1 else 0)


class ResidualEncoder(Encoder):
    """What EDSR and RCAN have in common: a convolution, a chain of ``blocks`` with a skip around it, and a tail."""

    def __init__(self, blocks: Sequence[nn.Module], channels: int, scale: int, no_upsampling: bool) -> None:
        super().__init__()
        self.sub_mean = UnusedMeanShift()
        self.add_mean = UnusedMeanShift()
        self.head = nn.Sequential(conv3x3(3, channels))
        self.body = nn.Sequential(*blocks, conv3x3(channels, channels))
        self.channels = self.out_dim = channels
        self.tail: nn.Sequential | None = None
        if not no_upsampling:
            self.tail = nn.Sequential(upsampler(scale, channels), conv3x3(channels, 3))
            self.out_dim, self.scale = 3, scale

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.head(image)
        x = self.body(x) + x
        return x if self.tail is None else self.tail(x)

    @property
    def held_channels(self) -> int:
        return held_by_chain(self.channels, self.scale)
