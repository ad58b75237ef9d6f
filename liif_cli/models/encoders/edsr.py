"""EDSR (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from liif_cli.models.encoders.layers import Encoder, UnusedMeanShift, conv3x3, held_by_chain, upsampler


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(channels, channels), nn.ReLU(inplace=True), conv3x3(channels, channels))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        residual = self.body(x)
        return x + residual if self.res_scale == 1 else x.add(residual, alpha=self.res_scale)


class EDSR(Encoder):
    """``n_resblocks`` residual blocks of ``n_feats`` channels; "baseline" is 16 of 64, the large one 32 of 256 with
    ``res_scale`` 0.1."""

    def __init__(
        self, n_resblocks: int, n_feats: int, res_scale: float, scale: int = 2, no_upsampling: bool = False
    ) -> None:
        super().__init__()
        self.sub_mean = UnusedMeanShift()
        self.add_mean = UnusedMeanShift()
        self.head = nn.Sequential(conv3x3(3, n_feats))
        blocks = [ResidualBlock(n_feats, res_scale) for _ in range(n_resblocks)]
        self.body = nn.Sequential(*blocks, conv3x3(n_feats, n_feats))
        self.out_dim = n_feats
        self.channels = n_feats
        self.tail: nn.Sequential | None = None
        if not no_upsampling:
            self.tail = nn.Sequential(upsampler(scale, n_feats), conv3x3(n_feats, 3))
            self.out_dim, self.scale = 3, scale

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.head(image)
        x = self.body(x) + x
        return x if self.tail is None else self.tail(x)

    @property
    def held_channels(self) -> int:
        return held_by_chain(self.channels, self.scale)
