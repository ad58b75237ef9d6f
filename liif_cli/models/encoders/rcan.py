"""RCAN (Zhang et al., "Image Super-Resolution Using Very Deep Residual Channel Attention Networks", ECCV 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from liif_cli.models.encoders.layers import ReLU, ResidualEncoder, conv3x3


class ChannelAttention(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        attention: Tensor = self.conv_du(self.avg_pool(x))
        return x * attention


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(channels, channels),
            ReLU(),
            conv3x3(channels, channels),
            ChannelAttention(channels, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.body(x)
        return residual + x


class ResidualGroup(nn.Module):
    def __init__(self, channels: int, blocks: int, reduction: int) -> None:
        super().__init__()
        attention = [AttentionBlock(channels, reduction) for _ in range(blocks)]
        self.body = nn.Sequential(*attention, conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.body(x)
        return residual + x


class RCAN(ResidualEncoder):
    """``n_resgroups`` groups of ``n_resblocks`` attention blocks of ``n_feats`` channels; the attention pools over the
    whole image, so its answer depends a little on what is encoded together."""

    def __init__(
        self,
        n_resgroups: int = 10,
        n_resblocks: int = 20,
        n_feats: int = 64,
        reduction: int = 16,
        scale: int = 2,
        no_upsampling: bool = False,
    ) -> None:
        groups = [ResidualGroup(n_feats, n_resblocks, reduction) for _ in range(n_resgroups)]
        super().__init__(groups, n_feats, scale, no_upsampling)
