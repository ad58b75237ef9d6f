"""Muon orthogonalises what is a matrix and leaves the rest to Adam."""

import copy

import pytest
import torch

from liif_cli.config import Optimiser, load_train
from liif_cli.models import build
from liif_cli.optim import MOMENTUM, Muon, make_optimiser, orthogonalise, set_rates


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 576), (256, 64), (32, 32), (16, 9)])
def test_the_iteration_gives_nearly_the_nearest_orthogonal_matrix(shape):
    x = matrix(*shape)
    got = orthogonalise(x[None])[0]
    values = torch.linalg.svdvals(got)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    exact = u @ v
    alike = float((got * exact).sum() / (got.norm() * exact.norm()))
    assert alike > 0.97


def test_a_batch_of_matrices_is_each_of_them_and_size_does_not_matter():
    several = torch.stack([matrix(8, 20, seed) for seed in range(3)])
    together = orthogonalise(several)
    for one, alone in zip(together, several, strict=True):
        assert torch.allclose(one, orthogonalise(alone[None])[0], atol=1e-5)
        assert torch.allclose(one, orthogonalise(1000 * alone[None])[0], atol=1e-4)
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def slow_muon(values, gradients, rate):
    """One matrix after the other, as the article writes it."""
    momentum = torch.zeros_like(values)
    for gradient in gradients:
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        ahead = (1 - MOMENTUM) * gradient + MOMENTUM * momentum
        flat = ahead.reshape(len(ahead), -1)
        x = flat / flat.norm()
        turned = x.T if x.shape[0] > x.shape[1] else x
        for _ in range(5):
            gram = turned @ turned.T
            turned = 3.4445 * turned + (-4.7750 * gram + 2.0315 * gram @ gram) @ turned
        update = (turned.T if x.shape[0] > x.shape[1] else turned).reshape(values.shape)
        values = values - rate * max(1, flat.shape[0] / flat.shape[1]) ** 0.5 * update
    return values


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_equals_a_slow_one_that_takes_each_matrix_alone(layout):
    weights = [torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    others = [matrix(20, 5, 3), matrix(6, 36, 4)]
    parameters = [torch.nn.Parameter(w.clone(memory_format=layout)) for w in weights]
    parameters += [torch.nn.Parameter(w.clone()) for w in others]
    gradients = [[torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) for step in range(4)]
                 for p in parameters]  # fmt: skip
    optimiser = Muon([{"params": parameters, "columns": 2**31, "muon_lr": 0.1}])
    for step in range(4):
        for parameter, its in zip(parameters, gradients, strict=True):
            parameter.grad = its[step].clone()
        optimiser.step()
    for parameter, start, its in zip(parameters, weights + others, gradients, strict=True):
        assert torch.allclose(parameter, slow_muon(start, its, 0.1), atol=1e-5)


def test_muon_agrees_with_torchs_own_where_that_can_be_used():
    reference = pytest.importorskip("torch.optim").Muon
    ours, theirs = (torch.nn.Parameter(matrix(32, 48)) for _ in range(2))
    optimisers = [Muon([{"params": [ours], "columns": 2**31, "muon_lr": 0.05}]),
                  reference([theirs], lr=0.05, weight_decay=0, momentum=MOMENTUM)]  # fmt: skip
    for step in range(3):
        for parameter in (ours, theirs):
            parameter.grad = matrix(32, 48, 10 + step)
        for optimiser in optimisers:
            optimiser.step()
    moved = (ours - matrix(32, 48)).norm()
    assert (ours - theirs).norm() < 0.03 * moved  # torch's iterates in bfloat16


def test_columns_behind_muons_are_adams():
    start = matrix(8, 10)
    both, adam = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start[:, 6:].clone())
    optimiser = Muon([{"params": [both], "columns": 6, "muon_lr": 0.1, "lr": 0.01}])
    reference = torch.optim.Adam([adam], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    gradients = [matrix(8, 10, seed) for seed in range(3)]
    for gradient in gradients:
        both.grad, adam.grad = gradient.clone(), gradient[:, 6:].clone()
        optimiser.step()
        reference.step()
    assert torch.allclose(both[:, 6:], adam, atol=1e-6)
    assert torch.allclose(both[:, :6], slow_muon(start[:, :6], [g[:, :6] for g in gradients], 0.1), atol=1e-5)


def test_adam_is_torchs_adam():
    start = torch.randn(7, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimisers = [Muon([{"params": [ours], "lr": 0.01}]), torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99))]
    for seed in range(5):
        for parameter in (ours, theirs):
            parameter.grad = torch.randn(7, generator=torch.Generator().manual_seed(seed))
        for optimiser in optimisers:
            optimiser.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def groups(name, **optimiser):
    model = build(load_train(name).model)
    made = make_optimiser(model, Optimiser(name="muon", **optimiser))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [(group["columns"], {names[id(parameter)] for parameter in group["params"]}) for group in made.param_groups]


def test_matrices_go_to_muon_and_what_meets_colours_or_places_to_adam():
    (everything, matrices), (columns, split), (none, rest) = groups("edsr-baseline-liif")
    assert everything > 10**6
    assert (columns, split) == (576, {"imnet.layers.0.weight"})
    assert none == 0
    assert {"encoder.head.0.weight", "imnet.layers.8.weight", "imnet.layers.0.bias"} <= rest
    assert {"encoder.body.0.body.0.weight", "imnet.layers.2.weight"} <= matrices
    model = build(load_train("edsr-baseline-liif").model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert matrices | split | rest == trained


@pytest.mark.parametrize("name", ["edsr-baseline-metasr", "rdn-liif", "edsr-baseline-x2", "siren"])
def test_every_trained_parameter_of_any_network_is_in_one_group(name):
    model = build(load_train(name).model)
    found = [member for _, members in groups(name) for member in members]
    assert sorted(found) == sorted(name for name, value in model.named_parameters() if value.requires_grad)


def test_the_schedule_scales_every_rate():
    model = build(load_train("siren").model)
    optimiser = make_optimiser(model, Optimiser(name="muon", learning_rate=0.2, muon_rate=0.04))
    set_rates(optimiser, 0.5)
    set_rates(optimiser, 0.25)
    assert {group["lr"] for group in optimiser.param_groups} == {0.05}
    assert {group["muon_lr"] for group in optimiser.param_groups} == {0.01}


def test_the_state_goes_on_exactly():
    def run(steps, state=None, start=None):
        parameter = torch.nn.Parameter(matrix(6, 8) if start is None else start)
        optimiser = Muon([{"params": [parameter], "columns": 5, "muon_lr": 0.1, "lr": 0.01}])
        if state is not None:
            optimiser.load_state_dict(state)
        for step in steps:
            parameter.grad = matrix(6, 8, 20 + step)
            optimiser.step()
        return parameter.detach().clone(), copy.deepcopy(optimiser.state_dict())

    whole, _ = run(range(6))
    half, state = run(range(3))
    assert torch.equal(whole, run(range(3, 6), state, half)[0])
