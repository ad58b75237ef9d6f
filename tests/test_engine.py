"""Plans change how a picture is painted, never what is painted."""

import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from conftest import TINY, photo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from liif_cli import allocator, control_groups, upscaler
from liif_cli import engine as rooms
from liif_cli.engine import Box, Engine, Plan
from liif_cli.errors import InputError, MemoryBudgetError, ModelError, UsageError
from liif_cli.images import from_array
from liif_cli.models import build, decoding, liif
from liif_cli.out_of_memory import is_out_of_memory
from liif_cli.upscaler import load, within_process

CPU = torch.device("cpu")
AMPLE = 2**31
OFFICIAL = Path(__file__).parent / "data" / "official_tiny.pth"
MLP = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16, 16]}}
SMALL = {"n_resblocks": 1, "n_feats": 8, "no_upsampling": True}
NETWORKS = {
    "liif": {"name": "liif", "args": {"encoder_spec": {"name": "edsr", "args": SMALL}, "imnet_spec": MLP}},
    "nearest": {
        "name": "liif",
        "args": {"encoder_spec": {"name": "edsr", "args": SMALL}, "imnet_spec": MLP, "local_ensemble": False},
    },
    "plain": {
        "name": "liif",
        "args": {"encoder_spec": {"name": "edsr", "args": SMALL}, "imnet_spec": MLP, "feat_unfold": False},
    },
    "metasr": {"name": "metasr", "args": {"encoder_spec": {"name": "edsr", "args": SMALL}}},
    "single x2": {
        "name": "liif",
        "args": {"encoder_spec": {"name": "edsr", "args": {**SMALL, "no_upsampling": False}}},
    },
    "single x3": {
        "name": "liif",
        "args": {"encoder_spec": {"name": "edsr", "args": {**SMALL, "no_upsampling": False, "scale": 3}}},
    },
}


def make(name, budget=AMPLE, dtype=torch.float32):
    torch.manual_seed(5)
    return Engine(build(NETWORKS[name]), CPU, dtype, budget)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def paint(engine, image, size, box=None):
    bands = list(engine.bands(image, size, box))
    return np.concatenate(bands)


@pytest.fixture
def planned(monkeypatch):
    """Make every engine follow a given plan."""

    def use(plan):
        monkeypatch.setattr(rooms, "make_plan", lambda *args, **options: plan)

    return use


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=12, deadline=None)
@given(
    image=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    grow=st.tuples(st.floats(1, 5), st.floats(1, 5)),
    tile=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    rows=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    hold=st.booleans(),
)
def test_tiled_equals_whole(name, image, grow, tile, rows, hold):
    size = tuple(max(1, int(n * factor)) for n, factor in zip(image, grow, strict=True))
    engine, pixels = make(name), picture(*image)
    whole = paint(engine, pixels, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "make_plan", lambda *args, **options: Plan(tile, rows[0], rows[1], hold))
        patch.setattr(rooms, "TILE_COLUMNS", 7)
        tiled = paint(engine, pixels, size)
    assert whole.shape == tiled.shape == (*size, 3)
    assert np.abs(whole - tiled).max() <= 1e-5


def test_the_engine_paints_what_the_paper_says():
    engine, pixels = make("liif"), picture(11, 14)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = oracle.paint(engine.model, image, (31, 44)).numpy()
    assert np.abs(paint(engine, pixels, (31, 44)) - expected).max() <= 1e-5


@pytest.mark.parametrize("name", ["liif", "metasr"])
def test_a_window_is_a_part_of_the_whole(name):
    engine, pixels = make(name), picture(20, 24)
    whole = paint(engine, pixels, (60, 72))
    part = paint(engine, pixels, (30, 36), Box(5, 8, 15, 20))
    assert np.abs(whole[15:45, 24:60] - part).max() <= 1e-5


def test_a_picture_is_encoded_once_for_many_windows(monkeypatch):
    engine = make("liif")
    encoded = engine.open(picture(16, 16), again=True)
    calls = []
    encode = engine.model.encode
    monkeypatch.setattr(engine.model, "encode", lambda image: calls.append(1) or encode(image))
    for top in range(4):
        np.concatenate(list(encoded.bands((40, 40), Box(top, 0, top + 8, 8))))
    assert len(calls) == 1


@pytest.mark.parametrize("budget", [AMPLE, 2**26])
def test_of_one_window_no_more_is_encoded_than_it_needs(budget, monkeypatch):
    engine = make("liif", budget)
    seen = []
    encode = engine.model.encode
    monkeypatch.setattr(engine.model, "encode", lambda image: seen.append(image[0, 0].numel()) or encode(image))
    window = paint(engine, picture(300, 400), (20, 24), Box(100, 200, 110, 212))
    halo = engine.model.encoder.halo_px
    assert sum(seen) <= (10 + 4 + 2 * halo) * (12 + 4 + 2 * halo)
    whole = engine.open(picture(300, 400), again=True)
    assert np.abs(window - np.concatenate(list(whole.bands((20, 24), Box(100, 200, 110, 212))))).max() <= 1e-5


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_box_without_sides_is_refused(bad):
    with pytest.raises(InputError, match="its sides must be numbers"):
        rooms.box_sides((40, 40), Box(0, 0, bad, 10))


def test_a_gpu_with_little_free_memory_paints_shorter_bands():
    """A small picture takes little however large the blocks may be; a large one as many rows as there is room for."""
    model = make("liif").model
    options = {"gpu": True, "threads": 1}
    small = rooms.make_task(model, (20, 20), (40, 40))
    assert rooms.make_plan(model, torch.float32, small, 2**25, **options).band_rows >= 20
    large = rooms.make_task(model, (1000, 1000), (4000, 4000))
    plans = [rooms.make_plan(model, torch.float32, large, budget, **options) for budget in (2**29, 2**32)]
    assert plans[0].band_rows < plans[1].band_rows
    assert plans[0].hold_features


def test_holding_a_whole_picture_for_many_windows_is_priced_as_such():
    engine = make("liif")
    task = rooms.make_task(engine.model, (4000, 4000), (40, 40), Box(0, 0, 10, 10))
    options = {"gpu": False, "threads": 1}
    assert rooms.make_plan(engine.model, torch.float32, task, 2**28, **options).hold_features
    assert not rooms.make_plan(engine.model, torch.float32, task, 2**28, **options, hold_image=True).hold_features
    assert rooms.make_plan(engine.model, torch.float32, task, 2**32, **options, hold_image=True).hold_features


@pytest.mark.parametrize("ensemble", [False, True])
def test_one_thread_paints_what_many_do(ensemble, threads):
    engine, pixels, painted = make("liif"), picture(11, 17), []
    for count in (3, 1):
        torch.set_num_threads(count)
        painted.append(np.concatenate(list(engine.open(pixels, ensemble=ensemble).bands((29, 40)))))
        assert torch.get_num_threads() == count
    assert np.abs(painted[0] - painted[1]).max() <= 1e-5


@pytest.fixture
def threads():
    """How many torch uses, which is set back."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_a_small_budget_is_kept_however_many_threads_there_are(monkeypatch):
    engine = make("liif", 2**26)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 128)
    assert engine.painters(2**26) == 1
    assert engine.painters(2**30) == 21
    monkeypatch.undo()
    assert paint(engine, picture(9, 11), (20, 30)).shape == (20, 30, 3)


def test_painting_leaves_other_threads_as_many_threads_as_they_had(threads):
    engine = make("liif")
    torch.set_num_threads(2)
    bands = engine.bands(picture(9, 9), (20, 20))
    next(bands)  # while it is painted, too
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2
        list(bands)
        assert pool.submit(torch.get_num_threads).result() == 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("kind", ["liif", "metasr"])
def test_what_a_program_has_set_for_itself_does_not_matter(kind):
    engine, pixels = make(kind), picture(9, 11)
    expected = paint(engine, pixels, (20, 30))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(paint(engine, pixels, (20, 30)), expected)
        assert torch.is_autocast_enabled("cpu")
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(paint(engine, pixels, (20, 30)), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert np.array_equal(paint(engine, pixels, (20, 30)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_bits_for_float32_that_a_program_has_set_do_not_matter(dtype, monkeypatch):
    """On processors with bfloat16 they would; here it is looked at what holds while it is painted."""
    engine, product, seen = Engine(build(NETWORKS["liif"]), CPU, dtype, AMPLE), liif.linear_relu, []

    def looked(*arguments):
        seen.append((torch.backends.mkldnn.matmul.fp32_precision, torch.backends.mkldnn.conv.fp32_precision))
        return product(*arguments)

    monkeypatch.setattr(liif, "linear_relu", looked)
    torch.set_float32_matmul_precision("medium")
    try:
        before = torch.backends.mkldnn.matmul.fp32_precision
        assert before != "ieee"
        paint(engine, picture(9, 9), (20, 20))
        assert torch.backends.mkldnn.matmul.fp32_precision == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {("ieee", "ieee")}


def test_wide_inner_layers_keep_their_blocks_small(monkeypatch):
    wide = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16, 1024, 16]}}
    spec = {"name": "liif", "args": {"encoder_spec": {"name": "edsr", "args": SMALL}, "imnet_spec": wide}}
    engine, sizes, product = Engine(build(spec), CPU, torch.float32, AMPLE), [], liif.linear_relu

    def measured(*arguments):
        answer = product(*arguments)
        sizes.append(answer.numel() * answer.element_size())
        return answer

    monkeypatch.setattr(liif, "linear_relu", measured)
    paint(engine, picture(40, 50), (200, 250))
    assert 0 < max(sizes) <= liif.CPU_BLOCK_BYTES


def test_a_field_of_an_array_keeps_what_the_array_was():
    model = load(TINY, precision="float32")
    pixels = photo(12, 16)
    expected = model.upscale(pixels.copy(), scale=2)
    field = model.encode(pixels)
    pixels[:] = 0
    assert np.array_equal(field.render(scale=2), expected)


def test_pictures_of_all_sizes_take_no_more_memory_than_pictures_of_one():
    """oneDNN keeps what it makes for each shape."""
    code = f"""
import numpy, psutil
from liif_cli.upscaler import load
model = load({str(TINY)!r}, precision="float32")
sizes = [(12 + number % 17, 12 + number // 17) for number in range(17 * 20)]
for number, size in enumerate(sizes):
    model.upscale(numpy.zeros((*size, 3), numpy.uint8), scale=2)
    if number == 100:
        before = psutil.Process().memory_info().rss
print(psutil.Process().memory_info().rss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30 * 2**20, done.stdout  # 53 MiB with what it keeps by default


def test_layers_that_are_painted_at_once_share_the_budget(monkeypatch):
    engine = make("liif", 2**28)
    budgets = []
    plan = rooms.make_plan
    monkeypatch.setattr(rooms, "make_plan", lambda *args, **options: budgets.append(args[3]) or plan(*args, **options))
    for layers in (1, 2):
        list(engine.open(picture(9, 9), layers=layers).bands((18, 18)))
    assert budgets == [2**28, 2**27]


def test_a_siren_is_painted_in_float32_whatever_is_asked_for():
    spec = {"name": "siren", "args": {"hidden_list": [8]}}
    engine = Engine(build(spec), CPU, torch.bfloat16, AMPLE)
    assert engine.dtype == torch.float32
    assert paint(engine, picture(9, 9), (18, 18)).dtype == np.float32


@pytest.mark.parametrize(
    "words",
    [
        "MPS backend out of memory (MPS allocated: 7 GB)",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried",
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Invalid buffer size: 80.00 GiB",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "std::bad_alloc",
    ],
)
def test_other_machines_words_for_lack_of_memory_are_known(words):
    assert is_out_of_memory(RuntimeError(words))


@pytest.mark.parametrize("painters", [1, 2, 4, 16])
def test_tiles_keep_all_threads_busy_to_a_band_s_end(painters):
    for width in range(600, 8200, 41):
        height = rooms.BAND_PIXELS // width
        rows, columns = rooms.tile_of((height, width), painters)
        assert 256 < columns <= rooms.TILE_COLUMNS
        across, down = -(-width // columns), -(-height // rows)
        assert across * columns < width + across  # all of about one width
        tiles = across * down
        assert tiles >= 3 * painters
        assert tiles / (-(-tiles // painters) * painters) > 0.9, (width, rows, columns)
    assert rooms.tile_of((1, 1), painters) == (1, 1)


def test_values_out_of_range_are_an_error_and_no_black_picture():
    engine = make("liif", dtype=torch.float16)
    engine.model.imnet.linears[0].bias.data.fill_(6e4)
    engine.model.imnet.linears[1].weight.data.fill_(1)
    with pytest.raises(ModelError, match="--precision float32"):
        paint(engine, picture(9, 9), (18, 18))
    engine = make("liif")
    engine.model.imnet.linears[-1].bias.data.fill_(torch.nan)
    with pytest.raises(ModelError, match="another model"):
        paint(engine, picture(9, 9), (18, 18))


@pytest.mark.parametrize("channels", [3, 4])
def test_where_half_precision_fails_by_itself_float32_goes_on(channels, monkeypatch, caplog):
    """The lower half of the picture leaves the range."""
    pixels = photo(40, 30, channels)
    exact = load(OFFICIAL, device="cpu", precision="float32").upscale(pixels, 2)
    monkeypatch.setattr(upscaler, "choose_precision", lambda name, device: torch.float16)
    monkeypatch.setattr(rooms, "make_plan", lambda *args, **options: Plan((16, 16), 9, 5, True))
    arrived = rooms._OnItsWay.arrived
    count = itertools.count()

    def fails(band):
        if next(count) == 6:
            band._total.fill_(torch.inf)
        return arrived(band)

    monkeypatch.setattr(rooms._OnItsWay, "arrived", fails)
    model = load(OFFICIAL, device="cpu")
    caplog.set_level("INFO", "liif_cli.upscaler")
    answer = model.upscale(pixels, 2)
    assert "going on in float32" in caplog.text
    assert np.abs(answer.astype(int) - exact).max() <= 1
    assert (answer != exact)[:30].any() or channels == 4  # painted in half precision, and not again
    assert np.array_equal(answer[-30:, :, :3], exact[-30:, :, :3])
    forced = load(OFFICIAL, device="cpu", precision="float16")
    count = itertools.count()
    with pytest.raises(ModelError, match="--precision float32"):
        forced.upscale(pixels, 2)


def test_a_network_that_holds_a_picture_is_not_turned_over_for_an_ensemble():
    engine = Engine(build({"name": "siren", "args": {"hidden_list": [8]}}), CPU, torch.float32, AMPLE)
    pixels = picture(9, 12)
    expected = paint(engine, pixels, (18, 24))
    got = np.concatenate(list(engine.open(pixels, ensemble=True).bands((18, 24))))
    assert np.array_equal(got, expected)


def test_a_network_that_holds_a_picture_is_not_done_before_it_paints():
    engine = Engine(build({"name": "siren", "args": {"hidden_list": [8]}}), CPU, torch.float32, AMPLE)
    told = []
    for _ in engine.open(picture(9, 12)).bands((18, 24), report=told.append):
        pass
    assert told[0] < 0.01
    assert told[-1] == 1


def test_windows_of_a_field_are_those_of_the_upscaled_picture():
    model = load(OFFICIAL, device="cpu", precision="float32")
    image = Image.fromarray(photo(30, 40))
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    big = model.upscale(image, scale=2.5)
    assert isinstance(big, Image.Image)
    assert (big.mode, big.size) == ("RGB", (100, 75))
    assert big.info["icc_profile"] == image.info["icc_profile"]
    view = model.encode(image).render(size=(25, 50), box=(10, 20, 20, 40))  # top, left, bottom, right
    assert np.abs(np.asarray(view).astype(int) - np.asarray(big)[25:50, 50:100]).max() <= 1


@pytest.mark.parametrize("size", [(36.0, 48.0), [36, 48], (np.int64(36), np.int64(48))])
def test_sizes_are_whole_numbers_of_whatever_kind(size):
    model = load(OFFICIAL, device="cpu")
    assert np.array_equal(model.upscale(photo(9, 12), size=size), model.upscale(photo(9, 12), size=(36, 48)))
    with pytest.raises(UsageError, match="scale must be a number above 0, not 2"):
        model.upscale(photo(9, 12), scale="2")
    with pytest.raises(UsageError, match=r"size must be whole numbers of pixels, not \(13.5, 24\)"):
        model.upscale(photo(9, 12), size=(13.5, 24))


def test_each_field_has_the_budget_it_was_opened_with(monkeypatch):
    budgets = []
    plan = rooms.make_plan

    def look(model, dtype, task, budget, **options):
        budgets.append(budget)
        return plan(model, dtype, task, budget, **options)

    monkeypatch.setattr(rooms, "make_plan", look)
    model = load(OFFICIAL, device="cpu")
    for free in (2**30, 2**29):
        monkeypatch.setattr(upscaler, "default_bytes", lambda device, free=free: free)
        field = model.encode(photo(9, 12))
        if free == 2**30:
            first = field
    first.render(2.0)
    field.render(2.0)
    assert budgets == [2**30, 2**29]


def test_rows_that_wait_to_be_resampled_are_part_of_the_plan():
    """8000 rows into 80: a row of the output has 400 painted ones for taps."""
    engine = make("liif")
    task = rooms.make_task(engine.model, (2000, 2000), (80, 8000))
    waiting = 2 * 4 * (2000 / 80) * 8000 * 12
    plain = rooms.make_task(engine.model, (2000, 2000), (2000, 8000))

    def least(task):
        with pytest.raises(MemoryBudgetError, match=r"8000 pixels per row need at least (\d+) MiB") as error:
            rooms.make_plan(engine.model, torch.float32, task, 0, gpu=False, threads=1)
        return int(re.search(r"at least (\d+)", str(error.value))[1]) * 2**20

    weights = rooms.RESAMPLED_COLUMN_BYTES * 8000 + rooms.RESAMPLED_LINE_BYTES * (80 + 8000)
    assert least(task) - least(plain) == pytest.approx(waiting + weights, rel=0.1)


def test_sixteen_bits_are_not_painted_with_eight(monkeypatch):
    monkeypatch.setattr(upscaler, "_has_bfloat16", lambda: True)
    ramp = np.linspace(20000, 30000, 24 * 24).reshape(24, 24, 1).repeat(3, axis=2).astype(np.uint16)
    exact = load(OFFICIAL, device="cpu", precision="float32").upscale(ramp, 2)
    chosen = load(OFFICIAL, device="cpu")
    assert chosen.dtype == torch.bfloat16
    assert np.array_equal(chosen.upscale(ramp, 2), exact)
    assert not np.array_equal(load(OFFICIAL, device="cpu", precision="bfloat16").upscale(ramp, 2), exact)
    eight = (ramp // 257).astype(np.uint8)
    forced = load(OFFICIAL, device="cpu", precision="bfloat16").upscale(eight, 2)
    assert np.array_equal(chosen.upscale(eight, 2), forced)


def test_a_gpu_that_fails_is_said_and_done_without(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64 MiB.\nMore words.")

    monkeypatch.setattr(torch, "ones", full)
    assert upscaler.choose_device("auto") == CPU
    assert "cuda cannot be used (CUDA out of memory. Tried to allocate 64 MiB.); going on with the CPU" in caplog.text
    with pytest.raises(UsageError, match=r"'cuda:0' cannot be used .CUDA out of memory.*--device cpu"):
        upscaler.choose_device("cuda:0")


@pytest.mark.parametrize("name", ["liif", "single x2"])
def test_a_reduced_picture_does_not_alias(name):
    # Stripes finer than the output can show must become their mean, not stripes of another width.
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2] = 255
    flat = paint(make(name), pixels, (16, 16))
    middle = flat[4:-4, 4:-4]
    assert middle.std(axis=(0, 1)).max() < 0.02


@pytest.mark.parametrize("size", [(20, 31), (9, 31), (7, 12), (1, 1)])
def test_a_picture_that_is_only_made_smaller_is_filtered(size):
    """And left as it is at its own size, as are windows of it, unless the network shall be asked for every pixel; one
    that grows along an axis is painted."""
    engine, pixels = make("liif", budget=1), picture(20, 31)
    with pytest.raises(MemoryBudgetError):
        paint(engine, pixels, (20, 31))
    engine.farthest = 4
    expected = rooms.BandResampler((20, 31), size).push(pixels.astype(np.float32) / 255)
    assert np.abs(paint(engine, pixels, size) - expected).max() <= 1e-6
    if size == (20, 31):
        assert np.array_equal(np.rint(paint(engine, pixels, size) * 255), pixels)
    inner = rooms.BandResampler((20, 31), (4, 5), ((3, 15), (7.5, 29.5)))
    expected = inner.push(pixels.astype(np.float32) / 255)
    assert np.abs(paint(engine, pixels, (4, 5), Box(3, 7.5, 15, 29.5)) - expected).max() <= 1e-6
    with pytest.raises(MemoryBudgetError):
        paint(engine, pixels, (size[0], 32))


def test_shares_of_a_reduction_are_told(monkeypatch):
    monkeypatch.setattr(rooms, "BAND_PIXELS", 7 * 31)
    told = []
    bands = list(make("liif").open(picture(20, 31)).bands((10, 31), report=told.append))
    assert sum(map(len, bands)) == 10
    assert told == [7 / 20, 14 / 20, 1]


@pytest.mark.parametrize("name", ["liif", "metasr", "single x2"])
def test_the_ensemble_is_the_mean_of_eight_views(name):
    engine, pixels = make(name), picture(11, 17)
    expected = np.zeros((29, 40, 3))
    for turn in range(4):
        for mirrored in (False, True):
            seen = np.rot90(pixels[:, ::-1] if mirrored else pixels, turn)
            answer = np.rot90(paint(engine, seen, (29, 40) if turn % 2 == 0 else (40, 29)), -turn)
            expected += (answer[:, ::-1] if mirrored else answer) / 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "make_plan", lambda *args, **options: Plan((9, 7), 3, 4, False))
        got = np.concatenate(list(engine.open(pixels, ensemble=True).bands((29, 40))))
    assert np.abs(got - expected).max() <= 1e-5


def test_beyond_the_farthest_scale_bicubic_goes_on():
    engine, pixels = make("liif"), picture(12, 15)
    near, end = paint(engine, pixels, (42, 30)), paint(engine, pixels, (48, 60))
    engine.farthest = 4
    assert np.array_equal(paint(engine, pixels, (42, 30)), near)
    expected = rooms.BandResampler((48, 60), (100, 170)).push(end)
    assert np.abs(paint(engine, pixels, (100, 170)) - expected).max() <= 1e-5


@pytest.mark.parametrize("name", ["liif", "nearest"])
@pytest.mark.parametrize("values", [40, 500, 3000])
def test_blocks_of_any_size_paint_the_same(name, values, monkeypatch):
    """A part of a row, a row, several of them; the last one overlaps the one before it."""
    pixels = picture(11, 17)
    expected = paint(make(name), pixels, (29, 41))
    monkeypatch.setattr(liif, "CPU_BLOCK_BYTES", 4 * 16 * values)
    assert np.abs(paint(make(name), pixels, (29, 41)) - expected).max() <= 1e-6


@pytest.mark.parametrize("name", ["liif", "metasr", "single x2"])
@pytest.mark.parametrize(
    ("scales", "box"),
    [
        ((7, 7), Box(2, 4, 10, 16)),
        ((5, 4.25), Box(8, 4, 9, 8)),
        ((10, 2), Box(2.4, 0, 14, 24)),
        ((10, 5), Box(8.5, 6.8, 9.6, 7.6)),
        ((0.5, 3), Box(2, 4, 10, 16)),
        ((0.25, 6), Box(4, 8.5, 16, 9)),
        ((1, 1), Box(3, 4, 11, 17)),
        ((0.5, 0.25), Box(2, 4, 14, 20)),
        ((2, 2), Box(3.5, 4, 11, 17.5)),
    ],
)
def test_windows_are_parts_of_the_whole_picture_where_it_is_resampled(name, scales, box):
    engine, pixels = make(name), picture(20, 24)
    engine.farthest = 4
    whole = paint(engine, pixels, (round(20 * scales[0]), round(24 * scales[1])))
    top, left, bottom, right = (round(edge * scales[number % 2]) for number, edge in enumerate(box))
    got = paint(engine, pixels, (bottom - top, right - left), box)
    assert np.abs(got - whole[top:bottom, left:right]).max() <= 1e-5
    again = engine.open(pixels, ensemble=True, again=True)
    whole, got = (
        rooms.joined(again.bands(size, of), size[0]) for size, of in ((whole.shape[:2], None), (got.shape[:2], box))
    )
    assert np.abs(got - whole[top:bottom, left:right]).max() <= 1e-5


def test_a_window_of_less_than_a_painted_pixel_is_priced_by_what_it_becomes():
    engine = make("liif")
    engine.farthest = 4
    task = rooms.make_task(engine.model, (100, 100), (4000, 4000), Box(0, 0, 0.01, 0.01), farthest=4)
    rooms.make_plan(engine.model, torch.float32, task, 2**30, gpu=False, threads=1)


def test_bands_are_priced_by_how_wide_they_become():
    """Rows reduced forty times, columns enlarged two hundred times: rows wait as wide as the output."""
    task = rooms.make_task(make("liif").model, (4000, 100), (100, 20000), farthest=4)
    plan = rooms.make_plan(make("liif").model, torch.float32, task, 2**28, gpu=False, threads=1)
    assert min(plan.band_rows, plan.code_rows) * 20000 * 12 < 2**28


def test_bands_are_small_however_far_the_picture_is_enlarged():
    engine = make("liif")
    engine.farthest = 4
    bands = [len(band) for band in engine.bands(picture(40, 300), (4000, 30000))]
    assert sum(bands) == 4000
    assert max(bands) * 30000 <= 2 * rooms.BAND_PIXELS


@pytest.mark.parametrize("box", [Box(0, 0, 0, 5), Box(-1, 0, 5, 5), Box(5, 0, 2, 5), Box(0, 0, 5, 99)])
def test_a_box_that_is_not_in_the_picture_is_refused(box):
    with pytest.raises(InputError, match="inside the picture of 12x10"):
        paint(make("liif"), picture(10, 12), (20, 20), box)


def test_a_budget_too_small_is_refused_with_the_numbers():
    with pytest.raises(MemoryBudgetError, match=r"at least \d+ MiB .* leaves 1 MiB.*--memory"):
        paint(make("liif", 2**20), picture(10, 12), (20, 20))


def test_out_of_memory_halves_the_plan_and_repeats_the_band(planned, monkeypatch):
    engine, pixels = make("liif"), picture(30, 30)
    expected = paint(engine, pixels, (90, 90))
    encode, attempts = engine.model.encode, []

    def short_of_memory(image):
        attempts.append(image.shape[-2])
        if image.shape[-2] > 25:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(image)

    monkeypatch.setattr(engine.model, "encode", short_of_memory)
    planned(Plan((128, 128), code_rows=64, band_rows=64, hold_features=True))
    monkeypatch.setattr(rooms, "LEAST_TILE", 4)
    assert np.abs(paint(engine, pixels, (90, 90)) - expected).max() <= 1e-5
    assert max(attempts) > 25 >= min(attempts)


def test_out_of_memory_at_the_smallest_plan_is_an_error(planned, monkeypatch):
    engine = make("liif")
    monkeypatch.setattr(engine.model, "encode", lambda image: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    planned(Plan((64, 64), 8, 8, True))
    with pytest.raises(MemoryBudgetError, match="out of memory on cpu with the smallest plan"):
        paint(engine, picture(30, 30), (60, 60))


def test_other_errors_of_the_device_are_not_taken_for_lack_of_memory(monkeypatch):
    engine = make("liif")
    monkeypatch.setattr(engine.model, "encode", lambda image: (_ for _ in ()).throw(RuntimeError("device lost")))
    with pytest.raises(RuntimeError, match="device lost"):
        paint(engine, picture(8, 8), (16, 16))


def work(engine, task, plan):
    """Pixels that encoding by a plan reads."""
    halo, (height, width) = engine.model.encoder.halo_px, task.image
    bands = 1 if plan.hold_features else -(-height // plan.code_rows)
    rows = height if plan.hold_features else min(plan.code_rows + 3, height)
    tiles = -(-rows // plan.tile[0]) * -(-width // plan.tile[1])
    return bands * tiles * min(plan.tile[0] + 2 * halo, height) * min(plan.tile[1] + 2 * halo, width)


@pytest.mark.parametrize("size", [(600, 800), (4000, 6000), (400, 9000)])
def test_more_memory_never_means_more_work(size):
    encoder = {"name": "edsr-baseline", "args": {"no_upsampling": True}}
    engine = Engine(
        build({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": MLP}}), CPU, torch.float32, 0
    )
    task = rooms.make_task(engine.model, size, (2 * size[0], 2 * size[1]))
    options = {"gpu": False, "threads": 2}
    works = []
    for mib in (150, 250, 400, 700, 1200, 2000, 4000, 20000):
        plan = rooms.make_plan(engine.model, torch.float32, task, mib * 2**20, **options)
        works.append(work(engine, task, plan) / (size[0] * size[1]))
    # A little for folding, which a plan weighs as well, and for tiles that are about as good.
    assert all(less <= 1.04 * more for more, less in itertools.pairwise(works))
    assert works[-1] < 1.25


def test_windows_of_a_held_image_share_one_price_of_holding_it():
    encoder = {"name": "edsr-baseline", "args": {"no_upsampling": True}}
    engine = Engine(
        build({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": MLP}}), CPU, torch.float32, 0
    )
    task = rooms.make_task(engine.model, (1000, 1500), (2000, 3000))
    tight = rooms.make_plan(engine.model, torch.float32, task, 500 * 2**20, gpu=False, threads=2, hold_image=True)
    assert work(engine, task, tight) < 8 * 1000 * 1500  # and not held at any price, in tiles that are all halo
    ample = rooms.make_plan(engine.model, torch.float32, task, 2**32, gpu=False, threads=2, hold_image=True)
    assert ample.hold_features


def test_views_that_are_transposed_are_encoded_in_transposed_tiles(monkeypatch):
    engine = make("liif")
    areas = []
    encode = engine.model.encode
    monkeypatch.setattr(engine.model, "encode", lambda image: areas.append(image[0, 0].numel()) or encode(image))
    monkeypatch.setattr(rooms, "make_plan", lambda *args, **options: Plan((20, 300), 17, 20, hold_features=False))
    works = set()
    for view in rooms.ALL_VIEWS:
        areas.clear()
        list(rooms.Encoded(engine, picture(60, 300), [view]).bands((60, 300)))
        works.add(sum(areas))
    assert len(works) == 1


@pytest.mark.parametrize("ensemble", [False, True])
def test_the_share_of_the_work_that_is_done_is_told_while_the_picture_is_encoded_too(ensemble, monkeypatch):
    monkeypatch.setattr(rooms, "LARGEST_TILE", (16, 24))
    told = []
    encoded = make("liif").open(picture(40, 48), ensemble=ensemble)
    bands = encoded.bands((100, 120), report=told.append)
    next(bands)
    assert len(told) >= 2  # two tiles across
    assert told == sorted(told)
    assert 0 < told[0] < told[-1] < 1
    list(bands)
    assert told == sorted(told)
    assert told[-1] == 1


def test_with_alpha_the_share_of_the_work_comes_to_its_end_too():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    told = []
    opened = load(str(OFFICIAL), device="cpu", precision="float32").open(from_array(pixels))
    assert sum(len(band) for band in opened.bands((40, 61), report=told.append)) == 40
    assert told == sorted(told)
    assert told[-1] == 1


@pytest.mark.parametrize(("freed", "trimmed"), [(allocator.KEPT_BYTES, False), (allocator.KEPT_BYTES + 1, True)])
def test_memory_is_kept_as_long_as_anybody_wants_it(freed, trimmed, monkeypatch):
    calls = []

    class Libc:
        def mallopt(self, option, value):
            calls.append((option, value))

        def malloc_trim(self, _):
            calls.append("trim")

    monkeypatch.setattr(allocator, "_glibc", Libc)
    monkeypatch.setattr(allocator, "_freed_bytes", lambda _: freed)
    with allocator.reused_memory():
        kept = list(calls)
        with allocator.reused_memory():
            pass
        assert calls == kept
    assert (calls[-1] == "trim") == trimmed
    assert len(calls) > len(kept) + trimmed


def test_the_smallest_limit_of_all_groups_holds(tmp_path, monkeypatch):
    """A batch system's: a job's group, its step's within, with more left, and a task's, without a limit."""
    task = tmp_path / "groups/job/step/task"
    task.mkdir(parents=True)
    for folder, limit, used in ((task, "max", 5), (task.parent, "900", 5), (task.parents[1], "1000", 300)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 40\n")
    (tmp_path / "own").write_text("4:cpu:/other\n0::/job/step/task\n")
    monkeypatch.setattr(control_groups, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(control_groups, "OWN", tmp_path / "own")
    assert control_groups.processors() is None
    (task / "cpu.max").write_text("max 100000\n")
    (task.parents[1] / "cpu.max").write_text("250000 100000\n")
    assert control_groups.processors() == 2.5
    assert upscaler.free_bytes(CPU) == 740
    (tmp_path / "own").write_text("0::/\n")
    assert upscaler.free_bytes(CPU) > 10**6  # at the top there is none
    (tmp_path / "own").unlink()
    assert upscaler.free_bytes(CPU) > 10**6


@pytest.mark.skipif(allocator._glibc() is None, reason="the C library is not glibc as it comes")
def test_freed_memory_is_counted():
    libc = allocator._glibc()
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("glibc before 2.33")
    with allocator.reused_memory():
        block = bytes(48 * 2**20)
        before = allocator._freed_bytes(libc)
        del block
        assert 40 * 2**20 < allocator._freed_bytes(libc) - before < 60 * 2**20


@pytest.mark.skipif(allocator._glibc() is None, reason="the C library is not glibc as it comes")
def test_kept_memory_does_not_count_against_a_limit_on_the_process():
    allocator.give_back()  # what tests before this one left
    before = within_process(2**40)
    with allocator.reused_memory():
        blocks = [b"x" * 2**20 for _ in range(100)]
        assert within_process(2**40) < before - 90 * 2**20
        del blocks
        assert within_process(2**40) > before - 20 * 2**20


@pytest.mark.parametrize(("image", "scale"), [((3000, 4000), 30), ((4000, 6000), 30), ((3000, 4000), 16)])
def test_what_a_gpu_paints_of_a_row_is_what_counts_not_what_it_becomes(image, scale):
    """Beyond the farthest scale rows are resampled, and many times as long."""
    output = (image[0] * scale, image[1] * scale)
    task = rooms.make_task(make("liif").model, image, output, farthest=4.0)
    plan = rooms.make_plan(make("liif").model, torch.float32, task, 2**29, gpu=True, threads=1)
    assert plan.band_rows >= 1


def test_threads_are_not_counted_while_others_start(monkeypatch):
    engine, counted = make("liif"), []
    threads = torch.get_num_threads()

    class Slow(threading.Barrier):
        def wait(self, *arguments):
            if not counted:
                other = threading.Thread(target=lambda: counted.append(engine.painters(AMPLE)))
                counted.append(other)
                torch.set_num_threads(1)
                other.start()
                other.join(0.2)
                assert other.is_alive()  # it waits
            return super().wait(*arguments)

    monkeypatch.setattr(threading, "Barrier", Slow)
    paint(engine, picture(20, 30), (40, 60))
    counted[0].join()
    assert counted[1] == threads == torch.get_num_threads()


def test_a_larger_budget_makes_a_larger_plan():
    engine = make("liif")
    task = rooms.make_task(engine.model, (3000, 4000), (30000, 40000))
    sizes = []
    for budget in (2**26, 2**28, 2**30):
        plan = rooms.make_plan(engine.model, torch.float32, task, budget, gpu=False, threads=2)
        sizes.append(math.prod(plan.tile) * plan.code_rows)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@pytest.mark.parametrize("name", ["liif", "nearest", "plain"])
def test_the_painter_for_gpus_paints_the_same_on_a_cpu(name, monkeypatch):
    pixels = picture(23, 30)
    expected = paint(make(name), pixels, (61, 74))
    monkeypatch.setattr(liif, "_CPUPainter", liif._GPUPainter)
    monkeypatch.setattr(liif, "GPU_BLOCK_VALUES", 8000)
    assert np.abs(paint(make(name), pixels, (61, 74)) - expected).max() <= 1e-5


FUSED = """
import torch
from liif_cli import coords
from liif_cli.errors import DeviceError
from liif_cli.models import build, fused, liif

torch.manual_seed(3)
for hidden, ensemble in (([128, 128], True), ([256, 256, 256, 256], True), ([256, 256], False), ([64], True)):
    encoder = {"name": "edsr", "args": {"n_resblocks": 1, "n_feats": 8, "no_upsampling": True}}
    mlp = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": hidden}}
    spec = {"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": mlp, "local_ensemble": ensemble}}
    model = build(spec).half()
    rows, columns = coords.axis(19, 5.5, origin=0.5), coords.axis(21, 7)
    with torch.inference_mode():
        field = model.fold(torch.randn(1, 8, 6, 7).half(), torch.tensor([rows.cell, columns.cell]))
        painter = liif._GPUPainter(field, rows, columns)
        axes = fused.Corner.of(painter.vertical), fused.Corner.of(painter.horizontal)
        fast = fused.paint(painter.codes, *axes, fused.layers(painter.of_relative, *painter.decoder))
        plain = painter.paint()
        model.float()
        exact = model.fold(torch.zeros(1, 8, 6, 7), torch.zeros(2))
        exact.codes = field.codes.float()
        exact = exact.paint(rows, columns)
    assert fast.shape == exact.shape and exact.std() > 0.01
    ours, theirs = ((answer - exact).abs().max() for answer in (fast, plain))
    assert ours <= max(1.2 * theirs, 2e-4), (hidden, ensemble, ours, theirs)

# What is no number is not made one.
with torch.inference_mode():
    broken = painter.codes.clone()
    broken[0, 0] = torch.inf
    broken[1, 1] = torch.nan
    answer = fused.paint(broken, *axes, fused.layers(painter.of_relative, *painter.decoder))
    assert not answer[:3, :3].isfinite().any() and answer[-1, -1].isfinite().all()

# After a fault nothing works on a GPU any more: that is said, with the way around it.
class Lost:
    device, dtype, is_cuda, shape = "cuda:0", torch.float16, False, painter.codes.shape
    def contiguous(self): raise RuntimeError("an illegal memory access was encountered")
    sum = contiguous
whole, painter.codes, painter.better, liif.PATCH_PIXELS = painter.codes, Lost(), {}, 64
try:
    painter._paint_fused()
    raise SystemExit("painted")
except DeviceError as error:
    assert "cuda:0 has failed (an illegal memory access was encountered)" in str(error), error
    assert "--precision float32" in str(error), error
# Nor is it tried where it can only be slow.
Lost.is_cuda, torch.cuda.get_device_capability = True, lambda device: (7, 5)
assert painter._paint_fused() is None
painter.codes = whole

# It is used once it has painted the same, and faster.
right = fused.paint
liif.PATCH_PIXELS = 64
for paint, times, taken in (
    (right, [1, 2], True),
    (right, [2, 1], False),
    (lambda *arguments: right(*arguments) + 0.1, [1, 2], False),
    (lambda *arguments: 1 / 0, [1, 2], False),
):
    fused.paint, painter.better, times = paint, {}, iter(times)
    liif._timed = lambda paint: (next(times), paint())
    for _ in range(2):
        answer = painter._paint_fused()
        assert torch.equal(answer, fast) if taken else answer is None
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_fused_kernel_interpreted_is_as_near_to_float32_as_single_operations():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", FUSED], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what Triton will do otherwise one day
@pytest.mark.parametrize(
    ("hidden", "count", "capability", "spilled"),
    [(64, 1, (9, 0), 0), (128, 1, (9, 0), 96), (256, 3, (9, 0), 0), (128, 1, (8, 6), 0)],
    ids=["narrow", "light", "paper", "light for Ampere"],
)
def test_the_fused_kernel_compiles_for_a_gpu_that_is_not_here(
    hidden, count, capability, spilled, tmp_path, monkeypatch
):
    """With its matrix instructions and without registers that overflow into memory (but for the few bytes a thread that
    its shape takes into account), neither of which one that only interprets the kernel sees."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    compiler, backends = map(pytest.importorskip, ("triton.compiler", "triton.backends.compiler"))
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("Triton has no compiler for NVIDIA's GPUs here")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from liif_cli.models import fused

    kernel, pieces = fused._paint, max(1, hidden // fused.PIECE)
    shape = fused.shape(hidden, 2, capability)
    fixed = {"WIDTH": hidden // pieces, "PIECES": pieces, "LAYERS": count, "CORNERS": 2,
             "DOWN": shape.down, "ACROSS": shape.across}  # fmt: skip
    kinds = dict.fromkeys(("height", "width", "codes_width"), "i32") | dict.fromkeys(fixed, "constexpr")
    kinds |= dict.fromkeys(("codes", "hidden_weight"), "*fp16")
    kinds |= dict.fromkeys(("row_code", "column_code"), "*i32")
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    place = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    aligned = {place[name]: [["tt.divisibility", 16]] for name, kind in signature.items() if kind.startswith("*")}
    constants = {place[name]: value for name, value in fixed.items()}
    try:
        source = compiler.ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    except TypeError:
        pytest.skip("this version of Triton is asked in another way")
    target = backends.GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    compiled = triton.compile(source, target, {"num_warps": shape.warps})
    if capability[0] == 9:
        products = set(re.findall(r"wgmma\.mma_async\.[\w.]*?(m64n\d+)", compiled.asm["ptx"]))
        assert products == {f"m64n{hidden // pieces}"}  # and none narrower than the narrowest (fused.WIDTHS)
    else:
        assert "mma.sync" in compiled.asm["ptx"]
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    dump = [str(tool), "--dump-resource-usage", str(tmp_path / "kernel.cubin")]
    used = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    if not triton.__version__.startswith("3.9."):
        pytest.skip("how registers are shared out is looked at with Triton 3.9 only")
    bytes_of = {name: int(value) for name, value in re.findall(r" (STACK|LOCAL):(\d+) ", used)}
    assert bytes_of["STACK"] <= spilled, used
    assert bytes_of["LOCAL"] == 0, used


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_fused_kernel_is_taken_and_paints_as_single_operations_do(dtype, monkeypatch):
    spec = json.loads(json.dumps(NETWORKS["liif"]))
    spec["args"]["imnet_spec"]["args"]["hidden_list"] = [256, 256, 256, 256]
    engine = Engine(build(spec), torch.device("cuda"), dtype, 2**33)
    better = {}
    monkeypatch.setattr(liif._GPUPainter, "better", better)
    fused = paint(engine, picture(200, 300), (540, 801))
    assert list(better.values()) == [True]
    monkeypatch.setattr(liif._GPUPainter, "_paint_fused", lambda _: None)
    assert np.abs(fused - paint(engine, picture(200, 300), (540, 801))).max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_the_same_with_and_without_the_operation_that_does_it_in_one(dtype, monkeypatch):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(50, 32), torch.randn(32, 16), torch.randn(16)
    expected = torch.relu(x.to(dtype).float() @ weight.to(dtype).float() + bias.to(dtype).float())
    arguments = x.to(dtype), weight.T.contiguous().T.to(dtype), bias.to(dtype)
    answers = [decoding.linear_relu(*arguments)]
    monkeypatch.setattr(decoding, "_LINEAR_POINTWISE", None)
    answers.append(decoding.linear_relu(*arguments))
    for answer in answers:
        assert answer.dtype == dtype
        assert torch.allclose(answer.float(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("painter", ["_CPUPainter", "_GPUPainter"])
def test_corner_shares_rounded_to_bfloat16_do_not_change_the_brightness(painter, monkeypatch):
    """At x3 a third and two thirds round to what is 0.2 % more than one: a grid in bright parts, were it left so."""
    monkeypatch.setattr(liif, "_CPUPainter", getattr(liif, painter))
    pixels = photo(40, 50)
    engines = [load(device="cpu", precision=precision, memory="2G")._engine for precision in ("float32", "bfloat16")]
    exact, rounded = (paint(engine, pixels, (120, 150)) for engine in engines)
    # Shares multiply all but the last layer's bias. Every third pixel lies on a code, where no share rounds; of those
    # before and after it the mean, since what rounding does to relative coordinates has opposite signs there.
    bias = engines[0].model.denormalise(engines[0].model.imnet.linears[-1].bias.detach()).numpy()
    parts = exact - bias
    before, on, after = (
        ((rounded - exact) * parts)[i::3, i::3].sum() / np.square(parts)[i::3, i::3].sum() for i in range(3)
    )
    assert abs((before + after) / 2 - on) < 1e-3  # 1e-4 to 3e-4; 2e-3 with the grid


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_paints_what_the_cpu_paints(name):
    pixels = picture(40, 50)
    expected = paint(make(name), pixels, (100, 130))
    torch.manual_seed(5)
    engine = Engine(build(NETWORKS[name]), torch.device("cuda"), torch.float32, AMPLE)
    assert np.abs(paint(engine, pixels, (100, 130)) - expected).max() <= 1e-4


MEASURE = """
import pathlib, re, sys, numpy, torch
from liif_cli.engine import Engine
from liif_cli.models import build

encoder = {"name": "edsr", "args": {"n_resblocks": 2, "n_feats": 64, "no_upsampling": True}}
mlp = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [32, 32]}}
def peak():
    # Not getrusage: its peak includes that of the process this one was forked from.
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

budget = int(sys.argv[1])
network = build({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": mlp}})
engine = Engine(network, torch.device("cpu"), torch.float32, budget)
image = numpy.zeros((600, 800, 3), numpy.uint8)
for band in engine.bands(image[:40, :40], (60, 60)):
    pass
before = peak()
for band in engine.bands(image, (900, 1200)):
    pass
print((peak() - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("budget_mib", [128, 512])
def test_the_peak_stays_within_the_budget_and_near_it(budget_mib):
    budget = budget_mib * 2**20
    run = subprocess.run([sys.executable, "-c", MEASURE, str(budget)], capture_output=True, text=True, check=True)
    peak = int(run.stdout)
    assert peak <= budget
    # A plan that uses a small part of what it is given would be slower than it must be.
    assert peak >= 0.3 * budget


def test_values_that_are_no_numbers_are_an_error_in_float32_too():
    """oneDNN's product with a ReLU makes zeros of them."""
    engine = make("liif")
    with torch.no_grad():
        engine.model.encoder.head[0].weight.mul_(1e38)
        engine.model.encoder.body[0].body[0].weight.mul_(1e38)
    with pytest.raises(ModelError, match="no numbers"):
        paint(engine, picture(9, 11), (20, 30))
