"""EDSR (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from liif_cli.models.encoders.layers import ReLU, ResidualEncoder, conv3x3


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(channels, channels), ReLU(), conv3x3(channels, channels))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.body(x)
        return residual.add_(x) if self.res_scale == 1 else x.add(residual, alpha=self.res_scale)


class EDSR(ResidualEncoder):
    """``n_resblocks`` residual blocks of ``n_feats`` channels; "baseline" is 16 of 64, the large one 32 of 256 with
    ``res_scale`` 0.1."""

    def __init__(
        self, n_resblocks: int, n_feats: int, res_scale: float, scale: int = 2, no_upsampling: bool = False
    ) -> None:
        blocks = [ResidualBlock(n_feats, res_scale) for _ in range(n_resblocks)]
        super().__init__(blocks, n_feats, scale, no_upsampling)
