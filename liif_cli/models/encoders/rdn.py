"""RDN (Zhang et al., "Residual Dense Network for Image Super-Resolution", CVPR 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liif_cli.errors import ModelError
from liif_cli.models.encoders.layers import Encoder, ReLU, conv3x3, held_by_chain

# Name: (dense blocks, convolutions in a block, channels each of them adds)
CONFIGURATIONS = {"A": (20, 6, 32), "B": (16, 8, 64)}


class DenseConvolution(nn.Module):
    def __init__(self, channels_in: int, growth: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv3x3(channels_in, growth, size), ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(x)), 1)


class DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int, convolutions: int, size: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(DenseConvolution(channels + i * growth, growth, size) for i in range(convolutions))
        )
        self.LFF = nn.Conv2d(channels + convolutions * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        fused: Tensor = self.LFF(self.convs(x))
        return fused + x


class RDN(Encoder):
    """Configuration "A" (20 blocks of 6 convolutions, growth 32) or "B" (16 of 8, growth 64), on ``G0`` channels."""

    def __init__(
        self, G0: int = 64, RDNkSize: int = 3, RDNconfig: str = "B", scale: int = 2, no_upsampling: bool = False
    ) -> None:
        super().__init__()
        if RDNconfig not in CONFIGURATIONS:
            raise ModelError(f"RDN has no configuration {RDNconfig!r}: use one of {', '.join(CONFIGURATIONS)}")
        blocks, convolutions, growth = CONFIGURATIONS[RDNconfig]
        self.SFENet1 = conv3x3(3, G0, RDNkSize)
        self.SFENet2 = conv3x3(G0, G0, RDNkSize)
        self.RDBs = nn.ModuleList(DenseBlock(G0, growth, convolutions, RDNkSize) for _ in range(blocks))
        self.GFF = nn.Sequential(nn.Conv2d(blocks * G0, G0, 1), conv3x3(G0, G0, RDNkSize))
        self.out_dim = G0
        # Every block's output is kept for the fusion at the end, and the shallow features. Beside them a block holds
        # its growing stack twice while a convolution's output is appended; at the end they are concatenated.
        self._held = (blocks + 1) * G0 + max(2 * (G0 + convolutions * growth), (blocks + 1) * G0)
        self.UPNet: nn.Sequential | None = None
        if not no_upsampling:
            self.UPNet = _tail(scale, G0, growth, RDNkSize)
            self.out_dim, self.scale = 3, scale

    def forward(self, image: Tensor) -> Tensor:
        shallow: Tensor = self.SFENet1(image)
        x: Tensor = self.SFENet2(shallow)
        outputs = []
        for block in self.RDBs:
            x = block(x)
            outputs.append(x)
        x = self.GFF(torch.cat(outputs, 1)) + shallow
        return x if self.UPNet is None else self.UPNet(x)

    @property
    def held_channels(self) -> int:
        return max(self._held, held_by_chain(self.SFENet1.out_channels, self.scale))


def _tail(scale: int, channels: int, growth: int, size: int) -> nn.Sequential:
    steps = {2: (2,), 3: (3,), 4: (2, 2)}.get(scale)
    if steps is None:
        raise ModelError(f"RDN's upsampling tail is defined for x2, x3 and x4, not x{scale}")
    layers: list[nn.Module] = []
    for step in steps:
        layers += [conv3x3(channels, growth * step * step, size), nn.PixelShuffle(step)]
        channels = growth
    return nn.Sequential(*layers, conv3x3(growth, 3, size))
