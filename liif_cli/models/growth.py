"""A trained LIIF with a wider and deeper decoder, so that a larger network begins where a smaller one ended.

After Net2Net (Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016): the larger
network computes what the smaller one does, to rounding, and trains on from there. Here new units keep their fresh
random weights instead of copies of old ones, and are not listened to yet; a new layer hands on what it is given, which
a ReLU leaves as it is, since what comes out of the layer before is never negative.
"""

from __future__ import annotations

import torch

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
    old, new = small.imnet.linears, large.imnet.linears
    same_inputs = old[0].in_features == new[0].in_features and small.local_ensemble == large.local_ensemble
    widths, added = [layer.out_features for layer in old[:-1]], len(new) - len(old)
    widths += [widths[-1]] * added
    fits = added >= 0 and all(width <= layer.out_features for width, layer in zip(widths, new, strict=False))
    if not (fits and same_inputs and small.spec["args"]["encoder_spec"] == large.spec["args"]["encoder_spec"]):
        return False
    large.encoder.load_state_dict(small.encoder.state_dict())
    for number, layer in enumerate(new):
        if number < len(old) - 1:
            source = old[number]
        elif number < len(new) - 1:
            source = None
        else:
            source = old[-1]
        width = widths[number] if number < len(widths) else layer.out_features
        inputs = widths[number - 1] if number else layer.in_features
        layer.weight[:width] = 0  # the old units listen to old units alone
        layer.weight[:width, :inputs] = torch.eye(width) if source is None else source.weight
        layer.bias[:width] = 0 if source is None else source.bias
    return True
