"""The networks, built from the official ``{"name": ..., "args": ...}`` dictionaries, so that official checkpoints load
by strict keys."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

from liif_cli.errors import ModelError
from liif_cli.models.base import Field, Model, Window
from liif_cli.models.encoders.edsr import EDSR
from liif_cli.models.encoders.layers import Encoder
from liif_cli.models.encoders.rcan import RCAN
from liif_cli.models.encoders.rdn import RDN
from liif_cli.models.liif import LIIF
from liif_cli.models.metasr import MetaSR
from liif_cli.models.single_scale import SingleScale
from liif_cli.models.siren import Siren

__all__ = ["Field", "Model", "Spec", "Window", "build"]

Spec = dict[str, Any]
MOST_WEIGHTS = 2**26  # of a decoder: more is a mistake
MOST_FACTOR = 1e6  # of a residual, likewise


def _edsr_baseline(
    n_resblocks: int = 16,
    n_feats: int = 64,
    res_scale: float = 1,
    scale: int = 2,
    no_upsampling: bool = False,
    rgb_range: int = 1,
) -> Encoder:
    return EDSR(n_resblocks, n_feats, _factor(res_scale), scale, no_upsampling)


def _edsr(
    n_resblocks: int = 32,
    n_feats: int = 256,
    res_scale: float = 0.1,
    scale: int = 2,
    no_upsampling: bool = False,
    rgb_range: int = 1,
) -> Encoder:
    return EDSR(n_resblocks, n_feats, _factor(res_scale), scale, no_upsampling)


def _factor(res_scale: float) -> float:
    if isinstance(res_scale, bool) or not isinstance(res_scale, int | float) or not abs(res_scale) <= MOST_FACTOR:
        raise ModelError(f"res_scale {res_scale!r}: give a number, such as 0.1")
    return res_scale


def _rcan(
    n_resgroups: int = 10,
    n_resblocks: int = 20,
    n_feats: int = 64,
    reduction: int = 16,
    scale: int = 2,
    no_upsampling: bool = False,
    rgb_range: int = 1,
    res_scale: float = 1,
) -> Encoder:
    return RCAN(n_resgroups, n_resblocks, n_feats, reduction, scale, no_upsampling)


def _liif(
    encoder_spec: Spec,
    imnet_spec: Spec | None = None,
    local_ensemble: bool = True,
    feat_unfold: bool = True,
    cell_decode: bool = True,
) -> Callable[[Spec], Model]:
    encoder = build_encoder(encoder_spec)
    if imnet_spec is None:  # the official code's way to say "no decoder, the encoder has a tail"
        if encoder.out_dim != 3:
            raise ModelError(
                "a model without imnet_spec needs an encoder with an upsampling tail: drop no_upsampling"
                " or add imnet_spec"
            )
        return lambda spec: SingleScale(spec, encoder)
    hidden = _call("decoder", {"mlp": _mlp}, imnet_spec)
    switches = {"local_ensemble": local_ensemble, "feat_unfold": feat_unfold, "cell_decode": cell_decode}
    return lambda spec: LIIF(spec, _feature_encoder(encoder), hidden, **switches)


def _metasr(encoder_spec: Spec) -> Callable[[Spec], Model]:
    encoder = _feature_encoder(build_encoder(encoder_spec))
    return lambda spec: MetaSR(spec, encoder)


def _siren(hidden_list: list[int], omega: float = 30.0) -> Callable[[Spec], Model]:
    if not isinstance(omega, int | float) or not 0 < omega < math.inf:
        raise ModelError(f"omega {omega!r}: give a number above 0, such as 30")
    return lambda spec: Siren(spec, _widths(hidden_list), omega)


def _mlp(hidden_list: list[int], out_dim: int = 3, in_dim: int | None = None) -> list[int]:
    if out_dim != 3:
        raise ModelError(f"the decoder answers with 3 colours, not out_dim {out_dim}")
    return _widths(hidden_list)


def _widths(hidden_list: list[int]) -> list[int]:
    widths = hidden_list if isinstance(hidden_list, list | tuple) else []
    are_widths = widths and all(type(width) is int and width > 0 for width in widths)
    # A first layer has some six hundred inputs at most.
    if not are_widths or sum(a * b for a, b in itertools.pairwise([600, *widths])) > MOST_WEIGHTS:
        raise ModelError(f"hidden_list {hidden_list!r}: give the width of each hidden layer, such as [256, 256]")
    return list(widths)


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "edsr-baseline": _edsr_baseline,
    "edsr": _edsr,
    "rdn": RDN,
    "rcan": _rcan,
}
MODELS: dict[str, Callable[..., Callable[[Spec], Model]]] = {"liif": _liif, "metasr": _metasr, "siren": _siren}


def build(spec: Spec) -> Model:
    """The network a specification describes, with fresh parameters.

    Raises :class:`ModelError` for a name, an argument or a value that is not known.
    """
    model: Model = _call("model", MODELS, spec)(spec)
    return model


def build_encoder(spec: Spec) -> Encoder:
    encoder: Encoder = _call("encoder", ENCODERS, spec)
    return encoder


def _feature_encoder(encoder: Encoder) -> Encoder:
    if encoder.scale != 1:
        raise ModelError("a decoder reads features: give its encoder no_upsampling = true")
    return encoder


def _call(kind: str, known: dict[str, Callable[..., Any]], spec: Spec) -> Any:
    """Call what the specification names with its arguments; whatever is unknown in it is named."""
    if (
        not isinstance(spec, dict)
        or not isinstance(spec.get("name"), str)
        or not isinstance(spec.get("args", {}), dict)
    ):
        raise ModelError(f"not a {kind} specification: {spec!r}; expected {{'name': ..., 'args': {{...}}}}")
    if spec["name"] not in known:
        raise ModelError(f"unknown {kind} {spec['name']!r}: use one of {', '.join(known)}")
    make, args = known[spec["name"]], spec.get("args", {})
    try:
        inspect.signature(make).bind(**args)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(make).parameters)
        raise ModelError(f"{kind} {spec['name']!r}: {error}; it takes {accepted}") from None
    try:
        return make(**args)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ModelError(f"{kind} {spec['name']!r} cannot be built from {args!r}: {error}") from None
