"""What a model is taught: the mean of a teacher's answers to eight views, each batch in each of them."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import tiny

from liif_cli.config import SampleRule
from liif_cli.data import Sampler, open_store
from liif_cli.distil import POOL, Taught, seen
from liif_cli.engine import ALL_VIEWS
from liif_cli.models import build
from liif_cli.train import Answers

CPU = torch.device("cpu")
RULE = SampleRule(low_res_side=6, queries=5, scale_min=1, scale_max=3)


@pytest.fixture
def sampler(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return Sampler(open_store(folder, tmp_path / "cache"), RULE, seed=3)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Answers(build(tiny().model).eval())


def answers(model, low_res, coords, cell):
    with torch.no_grad():
        return model(low_res, coords, cell)


def pixels_at(image, coords):
    """The pixels (B, Q, 3) of (B, 3, H, W) nearest to coordinates (B, Q, 2)."""
    sides = torch.tensor(image.shape[2:])
    places = ((coords + 1) / 2 * sides).long().clamp(max=sides - 1)
    return torch.stack([one[:, place[:, 0], place[:, 1]].T for one, place in zip(image, places, strict=True)])


def test_all_views_are_different_and_ask_for_the_same_pixels(sampler):
    sampler.rule = dataclasses.replace(RULE, scale_max=1)
    batch = sampler.batch(0, range(3), CPU)
    views = [seen(*batch[:3], view=view) for view in ALL_VIEWS]
    for (one, _, _), (other, _, _) in itertools.combinations(views, 2):
        assert not torch.equal(one, other)
    for low_res, coords, _ in views:
        assert torch.equal(pixels_at(low_res, coords), pixels_at(batch.low_res, batch.coords))
    assert all(torch.equal(one, other) for one, other in zip(views[0], batch[:3], strict=True))


def test_a_transposed_views_cell_is_transposed():
    low_res, coords, cell = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2), torch.tensor([[0.25, 0.5]])
    assert [seen(low_res, coords, cell, ALL_VIEWS[number])[2].tolist() for number in (3, 4)] == [
        [[0.25, 0.5]],
        [[0.5, 0.25]],
    ]


def test_what_is_learned_is_the_teachers_mean_over_turned_and_transposed_samples(sampler, teacher):
    """Against the eight symmetries of a square, made another way: rotated, and mirrored."""
    batch = sampler.batch(0, range(3), CPU)
    total = torch.zeros_like(batch.high_res)
    for turns, mirrored in itertools.product(range(4), (False, True)):
        low_res, coords = batch.low_res, batch.coords
        for _ in range(turns):  # a quarter turn anticlockwise takes (y, x) to (-x, y)
            low_res, coords = torch.rot90(low_res, 1, (2, 3)), torch.stack([-coords[..., 1], coords[..., 0]], -1)
        if mirrored:
            low_res, coords = low_res.flip(3), torch.stack([coords[..., 0], -coords[..., 1]], -1)
        total += answers(teacher, low_res, coords, batch.cell)
    first = next(Taught(sampler, teacher).batches(0, range(3), CPU))
    torch.testing.assert_close(first.high_res, total / 8, rtol=0, atol=1e-5)
    in_parts = next(Taught(sampler, teacher, parts=3).batches(0, range(3), CPU))
    torch.testing.assert_close(in_parts.high_res, first.high_res, rtol=0, atol=1e-6)
    assert (first.high_res - answers(teacher, *first[:3])).abs().max() > 1e-4  # not just one of them
    shared = next(Taught(sampler, teacher, share=0.75).batches(0, range(3), CPU))
    torch.testing.assert_close(shared.high_res, 0.75 * first.high_res + 0.25 * batch.high_res, rtol=0, atol=1e-6)


def test_synthetic_samples_are_not_taught(sampler, teacher):
    sampler.rule = dataclasses.replace(RULE, low_res_side=12, synthetic_share=0.5)
    own = sampler.batch(0, range(12), CPU)
    taught = next(Taught(sampler, teacher).batches(0, range(12), CPU))
    assert 0 < own.synthetic.sum() < 12
    changed = (taught.high_res != own.high_res).any(dim=(1, 2))
    assert torch.equal(changed, ~own.synthetic)
    assert torch.equal(taught.synthetic, own.synthetic)


def test_each_batch_comes_once_in_each_view_and_not_before_all_others(sampler, teacher):
    steps = list(itertools.islice(Taught(sampler, teacher).batches(0, range(2), CPU), POOL * len(ALL_VIEWS) + 1))
    for place in (0, 1, POOL - 1):
        plain = sampler.batch(place, range(2), CPU)
        views = [seen(*plain[:3], view=view) for view in ALL_VIEWS]
        came = [
            next(number for number, view in enumerate(views) if torch.equal(view[0], steps[step].low_res))
            for step in range(place, POOL * len(ALL_VIEWS), POOL)
        ]
        assert sorted(came) == list(range(len(ALL_VIEWS)))
        for step, view in zip(range(place, POOL * len(ALL_VIEWS), POOL), came, strict=True):
            assert torch.equal(steps[step].coords, views[view][1])
            assert torch.equal(steps[step].high_res, steps[place].high_res)
    assert torch.equal(steps[-1].low_res, seen(*sampler.batch(POOL, range(2), CPU)[:3], view=ALL_VIEWS[0])[0])


def test_a_steps_batch_depends_on_its_number_alone(sampler, teacher):
    whole = Taught(sampler, teacher).batches(0, range(2), CPU)
    expected = [next(whole) for _ in range(POOL + 4)]
    later = Taught(sampler, teacher).batches(POOL + 2, range(2), CPU)
    for step in (POOL + 2, POOL + 3):
        assert all(torch.equal(one, other) for one, other in zip(next(later), expected[step], strict=True))
