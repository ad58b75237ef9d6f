"""A trained LIIF with a wider and deeper decoder, so that a larger network begins where a smaller one ended.

After Net2Net (Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016): the larger
network computes what the smaller one does, to rounding, and trains on from there. Here new units keep their fresh
random weights instead of copies of old ones, and are not listened to yet; a new layer hands on what it is given, which
a ReLU leaves as it is, since what comes out of the layer before is never negative.
"""

from __future__ import annotations

import torch
from torch import nn

from liif_cli.models.base import Model
from liif_cli.models.liif import LIIF


@torch.no_grad()
def grow(small: Model, large: Model) -> bool:
    """Give ``large`` the encoder of ``small`` and a decoder that answers the same.

    Returns whether it could: both are LIIF with the same encoder and the same inputs to the decoder, and no layer of
    the larger decoder is narrower than that of the smaller one. Otherwise ``large`` is left as it is.
    """
    if not isinstance(small, LIIF) or not isinstance(large, LIIF):
        return False
    if small.spec["args"]["encoder_spec"] != large.spec["args"]["encoder_spec"]:
        return False
    old, new = small.imnet.linears, large.imnet.linears
    same_inputs = old[0].in_features == new[0].in_features and small.local_ensemble == large.local_ensemble
    between = [_handing_on(old[-1].in_features) for _ in range(len(new) - len(old))]
    sources = [*old[:-1], *between, old[-1]]
    pairs = list(zip(sources, new, strict=False))
    fits = all(source.out_features <= layer.out_features for source, layer in pairs)
    if not (same_inputs and fits and len(sources) == len(new)):
        return False
    large.encoder.load_state_dict(small.encoder.state_dict())
    for source, layer in pairs:
        units, inputs = source.weight.shape
        layer.weight[:units] = 0  # the old units listen to old units alone
        layer.weight[:units, :inputs] = source.weight
        layer.bias[:units] = source.bias
    return True


def _handing_on(units: int) -> nn.Linear:
    layer = nn.Linear(units, units)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
