"""Muon for the matrices, Adam for the rest.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) turns the momentum of a matrix into the nearest
orthogonal one before it steps, so that every direction of the matrix learns at the same rate. A convolution counts as
the matrix of its outputs by everything else. torch's own Muon takes two-dimensional parameters only and no columns of
one; equal shapes are orthogonalised here as one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from liif_cli.config import Optimiser
from liif_cli.models.base import Model
from liif_cli.models.liif import LIIF
from liif_cli.models.metasr import MetaSR

MOMENTUM = 0.95
# Coefficients of the fifth-order iteration: steep at zero, so that few steps suffice; the singular values end near 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of (..., rows, columns) matrices near 1 by Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = x / (x.flatten(-2).norm(dim=-1)[..., None, None] + 1e-7)
    shape, x = x.shape, x.reshape(-1, *x.shape[-2:])
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.view(shape)
    result: Tensor = x.mT if matrices.shape[-2] > matrices.shape[-1] else x
    return result


class Muon(torch.optim.Optimizer):
    """A group either has ``columns``: the parameters' first so many columns, as matrices, are Muon's and those behind
    them Adam's; or none, and all of it is Adam's."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(groups, {"lr": 0.0, "muon_lr": 0.0, "columns": 0, "betas": betas, "eps": 1e-8, "steps": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["steps"] += 1
            adam: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
            same_shape: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                columns = group["columns"] if parameter.ndim > 1 else 0
                if not columns:
                    adam.append((parameter, parameter.grad, state))
                    continue
                part, gradient = parameter, parameter.grad
                if parameter.ndim == 2 and columns < parameter.shape[1]:  # views: what is stepped is the parameter
                    part, gradient = parameter[:, :columns], parameter.grad[:, :columns]
                    adam.append((parameter[:, columns:], parameter.grad[:, columns:], state))
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(part)
                same_shape[part.shape].append((part, gradient, state["momentum"]))
            for members in same_shape.values():
                _muon(members, group["muon_lr"])
            if adam:
                _adam(adam, group["steps"], group["lr"], group["betas"], group["eps"])


def _muon(members: Sequence[tuple[Tensor, Tensor, Tensor]], rate: float) -> None:
    """One step of matrices of one shape, (values, gradient, momentum) each: Nesterov momentum, orthogonalised."""
    values, gradients, momenta = ([member[i] for member in members] for i in range(3))
    torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
    ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
    matrices = torch.stack([one.reshape(len(one), -1) for one in ahead])
    rows, columns = matrices.shape[1:]
    updates = orthogonalise(matrices).view(-1, *values[0].shape)
    torch._foreach_add_(values, list(updates.unbind()), alpha=-rate * max(1.0, rows / columns) ** 0.5)


def _adam(
    members: Sequence[tuple[Tensor, Tensor, dict[str, Tensor]]],
    steps: int,
    rate: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of Adam (Kingma and Ba, 2015, algorithm 1), (values, gradient, state) each."""
    for member, _, state in members:
        if "mean" not in state:
            state["mean"], state["square"] = torch.zeros_like(member), torch.zeros_like(member)
    values, gradients = [member[0] for member in members], [member[1] for member in members]
    means, squares = [member[2]["mean"] for member in members], [member[2]["square"] for member in members]
    torch._foreach_lerp_(means, gradients, 1 - betas[0])
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, gradients, gradients, value=1 - betas[1])
    denominators = list(torch._foreach_div(squares, 1 - betas[1] ** steps))
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, eps)
    torch._foreach_addcdiv_(values, means, denominators, value=-rate / (1 - betas[0] ** steps))


def make_optimiser(model: Model, config: Optimiser) -> torch.optim.Optimizer:
    """The optimiser of a configuration. The rates in its groups are what the schedule multiplies (``base_*``)."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if config.name == "adam":
        groups = [{"params": [parameter for _, parameter in trained], "lr": config.learning_rate}]
        fused = all(parameter.device.type in ("cpu", "cuda") for _, parameter in trained)
        return with_base_rates(torch.optim.Adam(groups, fused=fused))
    everything, only_codes, adam = [], [], []
    first, code_columns = _coordinate_layer(model)
    for name, parameter in trained:
        if parameter is first and code_columns:
            only_codes.append(parameter)
        elif parameter.ndim == 1 or parameter.shape[0] == 3 or parameter is first or _is_first_convolution(name):
            # Biases, the layer that answers with colours, those that are given colours or places.
            adam.append(parameter)
        else:
            everything.append(parameter)
    rates = {"lr": config.learning_rate, "muon_lr": config.muon_rate}
    groups = [
        {"params": everything, "columns": 2**31, **rates},
        {"params": only_codes, "columns": code_columns, **rates},
        {"params": adam, **rates},
    ]
    return with_base_rates(Muon([group for group in groups if group["params"]]))


def with_base_rates(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimiser.param_groups:
        group["base_lr"] = group["lr"]
        group["base_muon_lr"] = group.get("muon_lr", 0.0)
    return optimiser


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every rate to ``factor`` times its base."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
        if "muon_lr" in group:
            group["muon_lr"] = group["base_muon_lr"] * factor


def _coordinate_layer(model: Model) -> tuple[Tensor | None, int]:
    """The layer that reads coordinates, and how many of its columns are features that come before them."""
    if isinstance(model, LIIF):
        return model.imnet.linears[0].weight, model.code_dim
    if isinstance(model, MetaSR):
        return model.imnet.linears[0].weight, 0
    return None, 0


def _is_first_convolution(name: str) -> bool:
    return name in {"encoder.head.0.weight", "encoder.SFENet1.weight"}
