"""A larger decoder begins by answering what the smaller one does, and can learn from there."""

import oracle
import pytest
import torch

from liif_cli.checkpoint import Checkpoint
from liif_cli.errors import ModelError
from liif_cli.models import build
from liif_cli.models.growth import grow
from liif_cli.train import begin_with


def network(hidden, seed, *, features=8, name="liif", **switches):
    torch.manual_seed(seed)
    encoder = {"name": "edsr", "args": {"n_resblocks": 2, "n_feats": features, "no_upsampling": True}}
    args = {"encoder_spec": encoder, **switches}
    if name == "liif":
        args["imnet_spec"] = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": list(hidden)}}
    return build({"name": name, "args": args})


def answers(model):
    image = torch.linspace(0, 1, 3 * 7 * 9).view(1, 3, 7, 9)
    field = model.fold(model.encode(image), torch.tensor([[0.1, 0.2]]))
    return field.query(oracle.grid_coords((13, 17))[None])


@pytest.mark.parametrize("switches", [{}, {"local_ensemble": False}, {"feat_unfold": False, "cell_decode": False}])
@pytest.mark.parametrize(("small", "large"), [([6], [9]), ([6, 4], [6, 4, 4]), ([6, 4], [8, 8, 5, 7]), ([6], [6])])
def test_the_grown_decoder_answers_the_same(small, large, switches):
    given, grown = network(small, 1, **switches), network(large, 2, **switches)
    before = answers(grown)
    assert grow(given, grown)
    assert torch.allclose(answers(grown), answers(given), atol=1e-5)
    assert not torch.allclose(before, answers(given), atol=1e-2)


def test_a_beginning_that_computes_otherwise_is_refused():
    """Though its tensors have the same shapes."""
    own = network([6, 4], 1)
    checkpoint = Checkpoint(own.spec, own.state_dict(), {})
    begin_with(network([6, 4], 2), checkpoint, "a.pth")
    begin_with(network([9, 9], 2), checkpoint, "a.pth")
    others = [network([6, 4], 2, local_ensemble=False), network([6, 4], 2)]
    for block in others[1].encoder.body[:-1]:
        block.res_scale = 0.5
    for other in others:
        with pytest.raises(ModelError, match=r"a\.pth: its network is computed otherwise"):
            begin_with(other, checkpoint, "a.pth")


def test_new_units_learn():
    grown = network([8, 8, 8], 2)
    grow(network([6, 4], 1), grown)
    answers(grown).square().sum().backward()
    to_colours = grown.imnet.linears[-1].weight.grad
    assert (to_colours[:, 4:].abs().sum(dim=0) > 0).sum() >= 3
    for layer in grown.imnet.linears:
        assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "other",
    [
        network([8, 3], 2),
        network([8], 2),
        network([8, 8], 2, features=16),
        network([8, 8], 2, cell_decode=False),
        network([8, 8], 2, local_ensemble=False),
        network([], 2, name="metasr"),
    ],
    ids=["narrower", "shallower", "another encoder", "another input", "without the ensemble", "another kind"],
)
def test_what_does_not_fit_is_left_as_it_is(other):
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert not grow(network([6, 4], 1), other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
