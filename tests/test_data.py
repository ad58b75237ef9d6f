"""Pictures are decoded once, samples are what the paper says, and the same ones come again."""

import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from liif_cli import data
from liif_cli.compiled import Compiled
from liif_cli.config import SampleRule
from liif_cli.data import Sampler, image_files, open_store
from liif_cli.errors import InputError, OutputError
from liif_cli.images import read

CPU = torch.device("cpu")
RULE = SampleRule(low_res_side=8, queries=40, scale_min=1, scale_max=4)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one a file that is none, one too small."""
    path = tmp_path / "pictures"
    (path / "below").mkdir(parents=True)
    Image.fromarray(noise(50, 60, 1)).save(path / "a.png")
    Image.fromarray(noise(64, 40, 2)).save(path / "below" / "b.webp", lossless=True)
    Image.fromarray(noise(45, 45, 3)[..., 0]).save(path / "grey.png")
    Image.fromarray(noise(20, 90, 4)).save(path / "small.png")
    (path / "broken.jpg").write_text("not a picture")
    (path / "notes.txt").write_text("not looked at")
    return path


@pytest.fixture
def store(folder, tmp_path):
    return open_store(folder, tmp_path / "cache", smallest_side=32)


def places(batch, sides):
    """Rows and columns of a batch's queries."""
    at = ((batch.coords.double() + 1) / 2 * sides[:, None, None] - 0.5).round().long()
    return at[..., 0], at[..., 1]


# -- the store -------------------------------------------------------------------------------------------------------


def test_hidden_pictures_are_passed_over(folder):
    for name in (".trash/a.png", ".b.png", "below/.thumbnails/c.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(50, 50)).save(folder / name)
    assert [path.name for path in image_files(folder)] == ["a.png", "b.webp", "broken.jpg", "grey.png", "small.png"]
    assert image_files(folder / ".trash")  # named itself


def test_links_to_folders_are_followed_and_not_round_in_circles(folder, tmp_path, monkeypatch):
    below = tmp_path / "datasets"
    below.mkdir()
    (below / "linked").symlink_to(folder, target_is_directory=True)
    (folder / "below" / "back").symlink_to(folder, target_is_directory=True)
    (below / "twice").symlink_to(folder / "below", target_is_directory=True)
    monkeypatch.chdir(below)
    assert len(image_files(Path("linked"))) == 5
    held_out = tmp_path / "DIV2K_valid_HR"
    held_out.mkdir()
    Image.fromarray(noise(50, 60)).save(held_out / "x.png")
    (below / "val").symlink_to(held_out, target_is_directory=True)
    assert data.set_apart(below) == [below / "val"]
    (below / "val").unlink()
    (below / ".hidden").symlink_to(folder / "below", target_is_directory=True)  # hides nothing but itself
    (below / "a_test").symlink_to(folder / "below", target_is_directory=True)
    assert len(image_files(below, without=data.set_apart(below))) == 5
    (below / "a_test").unlink()
    names = [path.relative_to(below).as_posix() for path in image_files(below)]
    assert names == [f"linked/{name}" for name in ("a.png", "below/b.webp", "broken.jpg", "grey.png", "small.png")]


@pytest.mark.parametrize(("kept", "left"), [(-1, 4), (3600, 5)])
def test_of_a_folder_s_decoded_pictures_only_the_last_are_kept(folder, tmp_path, monkeypatch, kept, left):
    monkeypatch.setattr(data, "STORE_KEPT_S", kept)
    cache = tmp_path / "cache"
    apart = [open_store(folder / "below", cache), open_store(folder / "a.png", cache)]
    square = open_store(folder, cache, square=16)
    for number in range(2):
        Image.fromarray(noise(60, 60, number)).save(folder / f"new{number}.png")
        store = open_store(folder, cache)
    assert len(list(cache.glob("*.rgb"))) == len(list(cache.glob("*.json"))) == left
    assert len(store) == len(square) + 2
    assert [other[0].shape for other in apart] == [(64, 40, 3), (50, 60, 3)]


def test_a_folder_is_decoded_once_and_what_is_left_out_is_said(folder, tmp_path, monkeypatch):
    told = []
    store = open_store(folder, tmp_path / "cache", smallest_side=32, progress=lambda *n: told.append(n))
    assert sorted(store.sizes) == [(45, 45), (50, 60), (64, 40)]
    assert told == [(n, 5) for n in range(1, 6)]
    assert len(store.skipped) == 2
    assert any("broken.jpg" in line for line in store.skipped)
    assert any("small.png: 90x20" in line and "32 pixels" in line for line in store.skipped)
    assert np.array_equal(store[0], noise(50, 60, 1))
    grey = store[store.sizes.index((45, 45))]
    assert np.array_equal(grey, np.repeat(noise(45, 45, 3)[..., :1], 3, axis=2))
    assert not any(path.suffix == ".rgb" for path in folder.rglob("*"))
    tried = []
    monkeypatch.setattr(data, "read", lambda path: tried.append(path.name) or read(path))
    again = open_store(folder, tmp_path / "cache", smallest_side=10)
    assert len(again) == 4  # the small one serves smaller crops
    assert tried == ["broken.jpg"]  # which is left out once more


def test_a_picture_whose_reader_has_been_installed_is_used(folder, tmp_path, monkeypatch):
    def without_reader(path):
        if path.name == "a.png":
            raise InputError(f"{path}: install the reader")
        return read(path)

    monkeypatch.setattr(data, "read", without_reader)
    assert len(open_store(folder, tmp_path / "cache")) == 3
    monkeypatch.undo()
    assert len(open_store(folder, tmp_path / "cache")) == 4


def test_what_a_run_leaves_in_its_folder_is_no_training_picture(folder):
    Image.fromarray(noise(50, 60)).save(folder / "below" / "sample.png")
    (folder / "below" / "state.pth").write_bytes(b"")
    assert data.set_apart(folder) == [folder / "below"]


def test_a_name_that_no_folder_can_have_is_no_folder(folder):
    with pytest.raises(InputError, match="no such folder"):
        image_files(folder / ("x" * 300))


def test_a_changed_folder_or_a_damaged_cache_is_decoded_again(folder, tmp_path):
    cache = tmp_path / "cache"
    assert len(open_store(folder, cache)) == 4
    Image.fromarray(noise(33, 34, 9)).save(folder / "new.png")
    assert len(open_store(folder, cache)) == 5
    for file in cache.glob("*.rgb"):
        file.write_bytes(file.read_bytes()[:100])
    store = open_store(folder, cache)
    assert np.array_equal(store[0], noise(50, 60, 1))
    for file in cache.glob("*.json"):
        file.write_text("{")
    assert len(open_store(folder, cache)) == 5


def test_one_picture_may_be_named_by_itself(folder, tmp_path):
    store = open_store(folder / "a.png", tmp_path / "cache")
    assert store.sizes == [(50, 60)]


def test_squares_are_pils_of_the_middle(folder, tmp_path):
    store = open_store(folder, tmp_path / "cache", smallest_side=32, square=32)
    assert store.sizes == [(32, 32)] * 3
    expected = Image.fromarray(noise(50, 60, 1)[:, 5:55]).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(store[0], np.array(expected))


@pytest.mark.parametrize(("name", "file"), [("below", "below/b.webp"), ("grey.png", "grey.png")])
def test_what_is_scored_is_not_trained_on(folder, tmp_path, name, file):
    (tmp_path / "linked").symlink_to(folder / name)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "link.png").symlink_to(folder / file)
    for validation in (folder / "below" / ".." / name, tmp_path / "linked", tmp_path / "other"):
        store = open_store(folder, tmp_path / "cache", validation=validation)
        assert f"{file}: what is scored is not trained on" in store.skipped
        assert len(store) == 3
    for everything in (folder, tmp_path):  # who names all of it means it
        assert len(open_store(folder, tmp_path / "cache", validation=everything)) == 4
    (tmp_path / "other" / "more.webp").symlink_to(folder / "below" / "b.webp")
    with pytest.raises(InputError, match="all its pictures are scored"):
        open_store(folder / "below", tmp_path / "cache", validation=tmp_path / "other")


@pytest.mark.parametrize("name", ["val", "Validation", "my_test", "valid_HR", "Test"])
def test_what_is_held_out_by_its_name_is_not_trained_on(folder, name):
    (folder / name).mkdir()
    for other in ("values", "contest", "testament", "invalid"):
        (folder / other).mkdir()
    assert data.set_apart(folder) == [folder / name]


def test_pictures_are_known_by_all_their_usual_endings(folder):
    for ending in (".jfif", ".JPE", ".heif", ".hif", ".dib"):
        (folder / f"z{ending}").write_bytes(b"")
    assert len(image_files(folder)) == 5 + 5


def test_a_folder_that_cannot_be_looked_into_is_an_error(folder, monkeypatch):
    """Its pictures would be missing from a score or a model without a word. Simulated: root may look everywhere."""
    closed, before = folder / "closed", os.scandir
    closed.mkdir()
    (folder / "lost+found").mkdir()  # which file systems make

    def scandir(path):
        if Path(path) in (closed, folder / "lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return before(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="closed: cannot be looked into: Permission denied"):
        image_files(folder)
    assert image_files(folder, without=[closed])


def test_no_usable_picture_is_an_error_that_says_why(folder, tmp_path):
    with pytest.raises(InputError, match="smaller than the 500 pixels"):
        open_store(folder, tmp_path / "cache", smallest_side=500)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no pictures"):
        image_files(empty)
    with pytest.raises(InputError, match="no such folder"):
        image_files(tmp_path / "absent")
    (empty / "valid").mkdir()
    Image.fromarray(noise(8, 8, 0)).save(empty / "valid" / "a.png")
    assert image_files(empty) == [empty / "valid" / "a.png"]
    with pytest.raises(InputError, match="outside of valid"):
        open_store(empty, tmp_path / "cache")
    (empty / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of the 1 pictures"):
        open_store(empty, tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        open_store(folder, tmp_path / "file")


def test_threads_that_draw_ahead_give_the_batches_in_their_order(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(data.DRAWERS, "cpu", 3)
    sampler = Sampler(open_store(folder, tmp_path / "cache", smallest_side=32), RULE, seed=2)
    for step, batch in zip(range(4, 12), sampler.batches(4, range(2), CPU), strict=False):
        alone = sampler.batch(step, range(2), CPU)
        assert all(torch.equal(one, other) for one, other in zip(batch, alone, strict=True))


# -- crops -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_step_and_number(store):
    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    first = Sampler(store, RULE, seed=5).batch(7, range(4), CPU)
    used = Sampler(store, RULE, seed=5)
    used.batch(1, range(3), CPU)
    assert same(first, used.batch(7, range(4), CPU))
    parts = [used.batch(7, numbers, CPU) for numbers in (range(2), range(2, 4))]
    assert same(first, [torch.cat(pair) for pair in zip(*parts, strict=True)])
    assert not same(first, Sampler(store, RULE, seed=6).batch(7, range(4), CPU))
    assert not same(first, used.batch(8, range(4), CPU))


def test_batches_drawn_ahead_are_the_same_batches(store):
    sampler = Sampler(store, RULE)
    coming = sampler.batches(3, range(2), CPU)
    for step in (3, 4, 5):
        for got, expected in zip(next(coming), sampler.batch(step, range(2), CPU), strict=True):
            assert torch.equal(got, expected)
    coming.close()


def test_the_low_resolution_is_pils_and_every_value_is_the_crops_pixel(store):
    sampler = Sampler(store, RULE, seed=1)
    drawn = sampler.draw(0, range(12))
    batch = sampler.finish(drawn, CPU)
    sides = torch.tensor([height for height, _ in drawn.sizes])
    rows, columns = places(batch, sides)
    assert batch.low_res.shape == (12, 3, 8, 8)
    for i, side in enumerate(sides.tolist()):
        crop = drawn.truths[i, :side, :side].numpy()
        small = np.array(Image.fromarray(crop).resize((8, 8), Image.Resampling.BICUBIC))
        level = (batch.low_res[i] * 255).permute(1, 2, 0).round().numpy()
        assert np.abs(level - small).max() <= 1
        assert np.array_equal((batch.high_res[i] * 255).round().numpy(), crop[rows[i], columns[i]])
        assert torch.allclose(batch.cell[i], torch.tensor(2 * 8 / side))
        exact = (2 * torch.stack([rows[i], columns[i]], dim=-1).double() + 1) / side - 1
        assert torch.allclose(batch.coords[i].double(), exact, atol=1e-6)


def test_a_crop_is_a_part_of_a_picture_turned_one_of_eight_ways(store):
    drawn = Sampler(store, RULE, seed=2).draw(0, range(24))
    ways = set()
    for truth, (side, _) in zip(drawn.truths.numpy(), drawn.sizes, strict=True):
        crop = truth[:side, :side]
        found = [way for way in range(8) for number in range(len(store)) if contains(store[number], turned(crop, way))]
        assert found
        ways.add(found[0])
    assert len(ways) > 4
    plain = Sampler(store, dataclasses.replace(RULE, augment="none"), seed=2).draw(0, range(6))
    for truth, (side, _) in zip(plain.truths.numpy(), plain.sizes, strict=True):
        assert any(contains(store[number], truth[:side, :side]) for number in range(len(store)))


def turned(crop, way):
    crop = crop.transpose(1, 0, 2) if way & 4 else crop
    crop = crop[::-1] if way & 1 else crop
    return crop[:, ::-1] if way & 2 else crop


def contains(picture, crop):
    side = len(crop)
    if side > min(picture.shape[:2]):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(picture, (side, side, 3))[:, :, 0]
    corners = np.argwhere((picture[: len(windows), : windows.shape[1]] == crop[0, 0]).all(axis=-1))
    return any(np.array_equal(windows[y, x], crop) for y, x in corners)


def test_scales_cover_their_range_and_no_crop_is_larger(store):
    sizes = [size for step in range(20) for size, _ in Sampler(store, RULE).draw(step, range(8)).sizes]
    assert min(sizes) == 8
    assert max(sizes) == RULE.largest_crop == 32
    assert 18 < np.mean(sizes) < 22


def test_scales_drawn_by_their_logarithm_are_as_often_in_one_octave_as_in_the_next(store):
    rule = dataclasses.replace(RULE, scale_law="log")
    sizes = [size for step in range(50) for size, _ in Sampler(store, rule).draw(step, range(8)).sizes]
    assert min(sizes) == 8
    assert max(sizes) == 32
    assert np.mean([size < 16 for size in sizes]) == pytest.approx(0.5, abs=0.08)  # uniform: 0.31


def test_inputs_are_the_jpeg_files_that_pillow_makes_of_them(store):
    plain = Sampler(store, RULE, seed=1)
    half = dataclasses.replace(RULE, jpeg_share=0.5, jpeg_min=30, jpeg_max=80)
    sampler = Sampler(store, half, seed=1)
    drawn = sampler.draw(0, range(40))
    clean, batch = plain.finish(plain.draw(0, range(40)), CPU), sampler.finish(drawn, CPU)
    assert 10 < drawn.qualities.count(0) < 30
    assert {quality for quality in drawn.qualities if quality} <= set(range(30, 81))
    assert torch.equal(batch.high_res, clean.high_res)  # all else is drawn as without
    for quality, seen, before in zip(drawn.qualities, batch.low_res, clean.low_res, strict=True):
        levels = (before * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        if quality:
            file = io.BytesIO()
            Image.fromarray(levels).save(file, "JPEG", quality=quality)
            levels = np.asarray(Image.open(file))
        assert np.array_equal((seen * 255).round().permute(1, 2, 0).numpy(), levels)


@pytest.mark.parametrize("queries", [64, 0])
def test_as_many_queries_as_pixels_ask_each_pixel_once(store, queries):
    rule = dataclasses.replace(RULE, queries=queries, scale_min=1, scale_max=1)
    batch = Sampler(store, rule).batch(0, range(3), CPU)
    rows, columns = places(batch, torch.tensor([8, 8, 8]))
    for i in range(3):
        assert sorted((rows[i] * 8 + columns[i]).tolist()) == list(range(64))


def test_more_queries_than_pixels_ask_all_of_them_about_equally(store):
    rule = dataclasses.replace(RULE, queries=200, scale_min=1, scale_max=1)
    batch = Sampler(store, rule).batch(0, range(2), CPU)
    rows, columns = places(batch, torch.tensor([8, 8]))
    counts = torch.bincount(rows[0] * 8 + columns[0], minlength=64)
    assert counts.min() >= 2
    assert counts.max() <= 5


def test_every_pixel_is_as_likely_as_any_other(store):
    rule = dataclasses.replace(RULE, queries=7, low_res_side=4, scale_min=1.25, scale_max=1.25)
    sampler = Sampler(store, rule)
    counts = torch.zeros(25)
    for step in range(200):
        rows, columns = places(sampler.batch(step, range(4), CPU), torch.full((4,), 5))
        counts += torch.bincount((rows * 5 + columns).flatten(), minlength=25)
    assert (counts / counts.mean() - 1).abs().max() < 0.25


def test_pictures_are_drawn_alike_or_by_their_area(folder, tmp_path):
    Image.fromarray(noise(200, 200, 7)).save(folder / "large.png")
    store = open_store(folder, tmp_path / "cache", smallest_side=32)
    large = store.sizes.index((200, 200))
    for power, expected in ((0.0, 1 / 4), (1.0, 40000 / sum(h * w for h, w in store.sizes))):
        sampler = Sampler(store, dataclasses.replace(RULE, area_power=power))
        corners = sampler.draw(0, range(2000), cut=False).crops[:, 0].contiguous()
        share = (torch.bucketize(corners, torch.tensor(store.offsets), right=True) - 1 == large).float().mean()
        assert share == pytest.approx(expected, abs=0.04)


def test_of_several_candidates_the_crop_with_the_most_detail_is_taken(tmp_path):
    """A picture of mist with a noisy quarter: chance hits the quarter about as often as its area says, and the best of
    eight nearly always; with half of the samples chosen, between the two."""
    folder = tmp_path / "mist"
    folder.mkdir()
    mist = np.full((200, 200, 3), 128, np.uint8)
    mist[:100, :100] = noise(100, 100, 3)
    Image.fromarray(mist).save(folder / "mist.png")
    store = open_store(folder, tmp_path / "cache", smallest_side=32)
    rule = dataclasses.replace(RULE, scale_min=1, scale_max=1)
    noisy = {}
    for candidates, chosen in ((1, 1.0), (8, 1.0), (8, 0.5)):
        drawn = Sampler(store, dataclasses.replace(rule, candidates=candidates, chosen=chosen)).draw(0, range(400))
        noisy[candidates, chosen] = np.mean([truth[:8, :8].float().std() > 10 for truth in drawn.truths])
    assert 0.2 < noisy[1, 1] < 0.4
    assert noisy[8, 1] > 0.85
    assert noisy[8, 0.5] == pytest.approx((noisy[1, 1] + noisy[8, 1]) / 2, abs=0.08)


@pytest.mark.parametrize("augment", ["all", "mirror", "none"])
@pytest.mark.parametrize(("candidates", "chosen", "law"), [(1, 1.0, "uniform"), (4, 0.5, "log"), (3, 1.0, "uniform")])
def test_a_device_cuts_the_crops_that_the_host_cuts(store, candidates, chosen, law, augment):
    rule = dataclasses.replace(RULE, candidates=candidates, chosen=chosen, scale_law=law, augment=augment, scale_max=3)
    host, device = Sampler(store, rule, seed=3), Sampler(store, rule, seed=3)
    device._held = (CPU, data.HeldPictures(store, rule, CPU, lambda function: function))
    for step in range(3):
        expected, got = (sampler.batch(step, range(2, 9), CPU) for sampler in (host, device))
        assert all(torch.equal(*pair) for pair in zip(expected, got, strict=True))


def test_of_crops_alike_in_detail_the_first_is_taken_by_both(tmp_path):
    slope = np.repeat(np.arange(60, dtype=np.uint8)[:, None, None], 60, axis=1).repeat(3, axis=2)
    Image.fromarray(slope).save(tmp_path / "slope.png")
    store = open_store(tmp_path / "slope.png", tmp_path / "cache")
    rule = dataclasses.replace(RULE, candidates=5)
    host, device = Sampler(store, rule), Sampler(store, rule)
    device._held = (CPU, data.HeldPictures(store, rule, CPU, lambda function: function))
    expected, got = (sampler.batch(0, range(20), CPU) for sampler in (host, device))
    assert all(torch.equal(*pair) for pair in zip(expected, got, strict=True))


@pytest.mark.filterwarnings("ignore")  # what torch.compile is written with is deprecated
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_gpu_holds_the_pictures_and_draws_the_same_batches(store):
    rule, cuda = dataclasses.replace(RULE, candidates=4, chosen=0.5), torch.device("cuda")
    compiled, notes = [], []

    def compile(function):
        compiled.append(Compiled(function, notes.append))
        return compiled[-1]

    coming = Sampler(store, rule, seed=3, compiled=compile).batches(0, range(6), cuda)
    for step in range(6):
        expected = Sampler(store, rule, seed=3).batch(step, range(6), CPU)
        for one, other in zip(expected, next(coming), strict=True):
            assert torch.allclose(one.float(), other.cpu().float(), atol=1e-6)
    assert not notes
    assert not compiled[0].is_plain
    assert Sampler(store, rule).held_by(cuda) is None


# -- size-varied truths ----------------------------------------------------------------------------------------------

RESIZED = SampleRule(kind="resized", low_res_side=8, size_min=8, size_max=32, queries=50, augment="mirror")


@pytest.fixture
def squares(folder, tmp_path):
    return open_store(folder, tmp_path / "cache", smallest_side=32, square=32)


def test_the_truths_side_grows_with_the_pictures_number(squares):
    sampler = Sampler(squares, RESIZED)
    drawn = sampler.draw(0, range(12))
    batch = sampler.finish(drawn, CPU)
    assert set(drawn.sides) == {8, 20, 32}
    rows, columns = places(batch, torch.tensor(drawn.sides))
    for i, side in enumerate(drawn.sides):
        square = Image.fromarray(drawn.truths[i].numpy())
        truth = np.array(square.resize((side, side), Image.Resampling.BICUBIC))
        small = np.array(square.resize((8, 8), Image.Resampling.BICUBIC))
        assert np.abs((batch.low_res[i] * 255).permute(1, 2, 0).numpy() - small).max() <= 1
        asked = truth[rows[i], columns[i]].astype(int)
        assert np.abs((batch.high_res[i] * 255).round().numpy() - asked).max() <= 1
        assert torch.allclose(batch.cell[i], torch.tensor(16 / side))


def test_for_a_network_of_one_scale_truths_are_enlarged_again(squares):
    sampler = Sampler(squares, dataclasses.replace(RESIZED, truth_side=32, queries=0))
    drawn = sampler.draw(0, range(6))
    batch = sampler.finish(drawn, CPU)
    assert batch.high_res.shape == (6, 32 * 32, 3)
    for i, side in enumerate(drawn.sides):
        truth = Image.fromarray(drawn.truths[i].numpy()).resize((side, side), Image.Resampling.BICUBIC)
        enlarged = np.array(truth.resize((32, 32), Image.Resampling.BICUBIC)).reshape(-1, 3).astype(int)
        assert np.abs((batch.high_res[i] * 255).round().numpy() - enlarged).max() <= 1


def test_faces_are_mirrored_only_left_and_right(squares):
    drawn = Sampler(squares, RESIZED).draw(0, range(16))
    upright = [squares[number] for number in range(len(squares))]
    kinds = set()
    for truth in drawn.truths.numpy():
        kinds |= {mirrored for mirrored in (False, True) for square in upright
                  if np.array_equal(truth, square[:, ::-1] if mirrored else square)}  # fmt: skip
    assert kinds == {False, True}


# -- one picture -----------------------------------------------------------------------------------------------------


def test_fitting_one_picture_asks_its_own_pixels(folder, tmp_path):
    rule = SampleRule(kind="picture", queries=500, augment="none")
    store = open_store(folder / "a.png", tmp_path / "cache")
    batch = Sampler(store, rule).batch(0, range(1), CPU)
    at = ((batch.coords[0].double() + 1) / 2 * torch.tensor([50, 60]) - 0.5).round().long()
    assert np.array_equal((batch.high_res[0] * 255).round().numpy(), noise(50, 60, 1)[at[:, 0], at[:, 1]])
    with pytest.raises(InputError, match="one picture"):
        Sampler(open_store(folder, tmp_path / "cache"), rule)
