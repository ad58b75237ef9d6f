"""Synthetic samples: inputs without smoothed edges, and truths that lie where the inputs say."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from liif_cli import synthetic
from liif_cli.config import SampleRule
from liif_cli.data import Sampler, open_store
from liif_cli.resize import pil_bicubic
from liif_cli.synthetic import draw_sample

CPU = torch.device("cpu")
SIDE = 24


def never():
    raise AssertionError("no photograph is asked for")


def samples(monkeypatch, seen_as, scale, count=12):
    monkeypatch.setattr(synthetic, "INPUTS", (seen_as,))
    monkeypatch.setattr(synthetic, "INPUT_SHARES", (1,))
    monkeypatch.setattr(synthetic, "OVER_PHOTOGRAPH", 0)
    return [draw_sample(np.random.default_rng(seed), SIDE, round(SIDE * scale), never) for seed in range(count)]


def means(picture, side):
    """The mean of each of (side, side, C) pixels of a square picture, of places in two pixels by their parts."""
    whole = len(picture)
    parts = picture.astype(float).repeat(side, axis=0).repeat(side, axis=1)
    return parts.reshape(side, whole, side, whole, -1).mean(axis=(1, 3))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_an_input_of_means_is_the_mean_of_its_truth(monkeypatch, scale):
    for low_res, truth in samples(monkeypatch, "means", scale):
        assert truth.std() > 0
        assert np.abs(means(truth, SIDE) - low_res).max() <= 2  # each of two roundings, of colour and of cover


@pytest.mark.parametrize("side", [4, 13, 25])
def test_means_are_of_all_that_lies_within_a_pixel(side):
    for seed in range(5):
        pen = synthetic._Pen(np.random.default_rng(seed), 4, 9)
        for _ in range(6):
            pen.shape()
        exact, found = (means(np.asarray(image), side) for image in (pen.canvas, pen.means(side)))
        assert np.abs(exact[..., 3] - found[..., 3]).max() <= 0.51
        premultiplied = means(np.asarray(pen.canvas) * (np.asarray(pen.canvas)[..., 3:] / 255), side)
        assert np.abs(premultiplied - found * (found[..., 3:] / 255))[..., :3].max() <= 1.5  # roundings of both


def test_an_input_of_middles_has_no_other_colours_than_were_drawn(monkeypatch):
    smoothed = 0
    for low_res, truth in samples(monkeypatch, "middles", 4):
        colours = np.unique(low_res.reshape(-1, 3), axis=0)
        assert len(colours) <= 5  # of a palette
        smoothed += len(np.unique(truth.reshape(-1, 3), axis=0)) > len(colours)
        # It is of the same picture, in the same place: nearer to it than when moved by a pixel.
        apart = np.abs(means(truth, SIDE) - low_res).mean()
        for axis in (0, 1):
            assert apart < np.abs(means(truth, SIDE) - np.roll(low_res, 1, axis=axis)).mean() or low_res.std() < 2
    assert smoothed > 6


def test_an_input_of_middles_shows_what_is_in_the_middle_of_its_pixels(monkeypatch):
    # Then each place is a pixel of a truth that is nine times as large.
    monkeypatch.setattr(synthetic, "FINE_OF_TRUTH", 1)
    for low_res, truth in samples(monkeypatch, "middles", 9):
        assert np.array_equal(low_res, truth[4::9, 4::9])


@pytest.mark.parametrize(("side", "scale"), [(1, 1), (2, 30), (3, 4), (64, 5)])
def test_samples_of_all_sizes_can_be_drawn(side, scale):
    photograph = np.zeros((side * scale, side * scale, 3), np.uint8)
    for seed in range(3):
        low_res, truth = draw_sample(np.random.default_rng(seed), side, side * scale, lambda: photograph)
        assert (low_res.shape, truth.shape) == ((side, side, 3), photograph.shape)


def test_an_input_may_be_reduced_as_photographs_are(monkeypatch):
    for low_res, truth in samples(monkeypatch, "bicubic", 3, count=4):
        assert np.array_equal(low_res, pil_bicubic(truth, (SIDE, SIDE)))


def test_shapes_are_drawn_over_photographs(monkeypatch):
    monkeypatch.setattr(synthetic, "OVER_PHOTOGRAPH", 1)
    photograph = np.random.default_rng(0).integers(0, 256, (2 * SIDE, 2 * SIDE, 3), dtype=np.uint8)
    kept = []
    for seed in range(20):
        low_res, truth = draw_sample(np.random.default_rng(seed), SIDE, 2 * SIDE, lambda: photograph)
        same = (truth == photograph).all(axis=-1)
        behind = (low_res == pil_bicubic(photograph, (SIDE, SIDE))).all(axis=-1)
        whole = same.reshape(SIDE, 2, SIDE, 2).all(axis=(1, 3))
        kept.append((same.mean(), (behind & whole).sum() / max(1, whole.sum())))
    assert 0.1 < np.mean([share for share, _ in kept]) < 0.95
    assert np.mean([share for _, share in kept]) > 0.7  # less where inputs are the truth's reductions


@pytest.fixture
def sampler(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    rule = SampleRule(low_res_side=SIDE, queries=0, scale_min=2, scale_max=2, synthetic_share=0.5)
    return Sampler(open_store(folder, tmp_path / "cache"), rule, seed=5)


def test_of_a_batch_a_share_is_synthetic_input_and_truth_turned_alike(sampler, monkeypatch):
    monkeypatch.setattr(synthetic, "INPUTS", ("means",))
    monkeypatch.setattr(synthetic, "INPUT_SHARES", (1,))
    monkeypatch.setattr(synthetic, "OVER_PHOTOGRAPH", 0)
    batch = sampler.batch(0, range(60), CPU)
    assert 20 <= batch.synthetic.sum() <= 40
    truths = batch.high_res.view(-1, SIDE, 2, SIDE, 2, 3).mean(dim=(2, 4)).permute(0, 3, 1, 2)
    apart = (truths - batch.low_res).abs().amax(dim=(1, 2, 3)) * 255
    assert apart[batch.synthetic].max() <= 2
    assert apart[~batch.synthetic].min() > 2  # noise, reduced by bicubic
    again = sampler.batch(0, range(60), CPU)
    assert all(torch.equal(one, other) for one, other in zip(batch, again, strict=True))


def test_nothing_is_synthetic_unless_it_is_asked_for(sampler):
    sampler.rule = dataclasses.replace(sampler.rule, synthetic_share=0)
    draw = sampler.draw(0, range(10))
    assert draw.inputs is None
    assert not draw.synthetic.any()
