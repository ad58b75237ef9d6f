"""A run learns, stops and goes on as if it never had stopped, and says when it cannot go on."""

import csv
import dataclasses
import itertools
import json
import math
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import liif_cli
from liif_cli import checkpoint
from liif_cli import train as train_module
from liif_cli.benchmarks import find
from liif_cli.checkpoint import Checkpoint
from liif_cli.cli import app
from liif_cli.compiled import Compiled
from liif_cli.config import Schedule, Validation, load_train, presets
from liif_cli.data import open_store
from liif_cli.errors import InputError, MemoryBudgetError, ModelError, UsageError
from liif_cli.evaluate import Work, evaluate, load_methods
from liif_cli.models import build
from liif_cli.protocol import Protocol
from liif_cli.train import (
    CONFIG,
    LOG,
    SAMPLE,
    STATE,
    VALIDATION,
    Trainer,
    TrainingError,
    network,
    rate_factor,
    run_training,
    start_gently,
)
from liif_cli.validate import Validator

SMALL = Path(__file__).parents[2] / "shared" / "data" / "train" / "small"
CPU = torch.device("cpu")

# Every preset in small: the same network, data and recipe, with fewer channels, pixels and iterations.
TINY = ("batch=2", "precision=float32", "iterations=20")


def shrunk(name):
    model = load_train(name).model
    if model["name"] == "siren":
        return [*TINY, "model.args.hidden_list=[32, 32]", "sample.queries=256"]
    encoder = {"edsr-baseline": ("n_resblocks=2", "n_feats=8"), "rdn": ("G0=4", 'RDNconfig="A"')}
    settings = [f"model.args.encoder_spec.args.{part}" for part in encoder[model["args"]["encoder_spec"]["name"]]]
    if "imnet_spec" in model["args"]:
        hidden = [8] * len(model["args"]["imnet_spec"]["args"]["hidden_list"])
        settings.append(f"model.args.imnet_spec.args.hidden_list={hidden}")
    sample = load_train(name).sample
    if sample.queries:
        settings.append("sample.queries=32")
    if sample.kind == "crops":
        settings.append("sample.low_res_side=8")
    return [*TINY, *settings]


def tiny(*more, name="liif-light"):
    return load_train(name, [*shrunk(name), *more])


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose more to waiting for threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Smooth pictures, which a network can learn something about."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((70 + number, 60), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def store(photographs, tmp_path_factory):
    return open_store(photographs, tmp_path_factory.mktemp("cache"))


def trained(config, store, run, iterations=None, **how):
    trainer = Trainer(config, store, CPU, **how)
    if (run / STATE).exists():
        trainer.resume(run)
    if iterations is not None:
        trainer.config = dataclasses.replace(config, iterations=iterations)
    run_training(trainer, run)
    return trainer


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def everything(trainer):
    state = {**{f"model.{k}": v for k, v in trainer.model.state_dict().items()},
             **{f"average.{k}": v for k, v in trainer.average.items()}}  # fmt: skip
    for number, values in trainer.optimiser.state_dict()["state"].items():
        state |= {f"optimiser.{number}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return state


def test_a_benchmark_s_folder_is_scored_on_its_pictures_not_on_their_reduced_copies(tmp_path, photographs):
    (tmp_path / "Set5" / "HR").mkdir(parents=True)
    (tmp_path / "Set5" / "LR_bicubic" / "X2").mkdir(parents=True)
    for path in photographs.iterdir():
        shutil.copy(path, tmp_path / "Set5" / "HR")
        Image.open(path).reduce(2).save(tmp_path / "Set5" / "LR_bicubic" / "X2" / f"{path.stem}x2.png")
    validator = Validator(tmp_path / "Set5", Validation())
    assert [picture.shape[:2] for picture in validator.pictures] == [(60, 70 + number) for number in range(4)]


def test_scores_belong_to_the_weights_they_were_measured_with(store, photographs, tmp_path):
    config = tiny("iterations=4", "save_every=1", "validation.every=2", "validation.scales=[2]")
    validator = Validator(photographs, config.validation)
    trainer = Trainer(config, store, CPU)
    stop_at = dataclasses.replace(config, iterations=2)
    trainer.config = stop_at
    run_training(trainer, tmp_path, validator=validator)
    assert trainer.is_scored_by(validator)
    assert checkpoint.read(tmp_path / checkpoint.RUN_MODEL).facts["scores"] == trainer.scores
    trainer.config = config
    trainer.step()
    assert not trainer.is_scored_by(validator)
    assert "scores" not in trainer.exported().facts
    again = Trainer(stop_at, store, CPU)
    again.resume(tmp_path)
    assert again.is_scored_by(validator)
    other = Validator(photographs, dataclasses.replace(config.validation, scales=(3.0,)))
    shutil.copytree(photographs, tmp_path / "elsewhere" / photographs.name)
    moved = Validator(tmp_path / "elsewhere" / photographs.name, config.validation)
    assert not again.is_scored_by(other)
    assert moved.name == validator.name
    assert not again.is_scored_by(moved)


def test_the_speed_that_is_logged_is_that_of_training(store, photographs, tmp_path, monkeypatch):
    config = tiny("iterations=6", "log_every=4", "validation.every=3", "validation.scales=[2]")
    clock = itertools.count()
    monkeypatch.setattr(train_module.time, "perf_counter", lambda: next(clock))  # a look at the clock takes a second
    scores = Validator.scores

    def slowly(*arguments):
        for _ in range(1000):
            next(clock)
        return scores(*arguments)

    monkeypatch.setattr(Validator, "scores", slowly)
    trainer = Trainer(config, store, CPU)
    run_training(trainer, tmp_path, validator=Validator(photographs, config.validation))
    seconds = [float(row["seconds"]) for row in table(tmp_path / LOG)]
    assert len(seconds) == 2
    assert all(2 <= value / steps < 10 for value, steps in zip(seconds, (4, 2), strict=True)), seconds


@pytest.mark.parametrize(
    ("preset", "settings", "remedy"),
    [
        ("edsr-baseline-x4", ["scale_min=2", "scale_max=2"], "sample.scale_min=4 --set sample.scale_max=4"),
        ("edsr-baseline-x4", ["scale_min=2", "queries=9"], "sample.scale_min=4 --set sample.scale_max=4"),
        ("faces-32-256-upsample", ["low_res_side=64"], "sample.truth_side=512"),
    ],
)
def test_a_network_of_one_scale_is_trained_at_no_other(preset, settings, remedy):
    train_module.network(load_train(preset))
    with pytest.raises(UsageError, match=rf"paints at x\d only; train it with --set {re.escape(remedy)}"):
        train_module.network(load_train(preset, [f"sample.{setting}" for setting in settings]))


# -- resuming --------------------------------------------------------------------------------------------------------


class StopAt:
    """Asks a run to stop when it has come to an iteration, as the system or a person would."""

    def __init__(self, iteration, number, times=1):
        self.iteration, self.number, self.times = iteration, number, times

    def progress(self, progress):
        if progress.iteration == self.iteration:
            for _ in range(self.times):
                signal.raise_signal(self.number)

    def scored(self, iteration, scores):
        pass

    def note(self, text):
        pass


def test_losses_of_the_steps_before_a_stop_are_not_lost(store, tmp_path, monkeypatch):
    steps = train_module.Trainer.step

    def step(trainer):
        steps(trainer)
        if trainer.iteration == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train_module.Trainer, "step", step)
    assert run_training(Trainer(tiny("iterations=8", "log_every=4"), store, CPU), tmp_path) == signal.SIGTERM
    assert [row["iteration"] for row in table(tmp_path / LOG)] == ["4", "5"]


def test_a_stop_at_the_last_step_leaves_the_scores_to_who_goes_on(store, photographs, tmp_path):
    config = tiny("iterations=2", "log_every=1", "validation.scales=[2]")
    validator = Validator(photographs, config.validation)
    trainer = Trainer(config, store, CPU, watcher=StopAt(2, signal.SIGTERM))
    assert run_training(trainer, tmp_path, validator=validator) == signal.SIGTERM
    again = Trainer(config, store, CPU)
    again.resume(tmp_path)
    assert run_training(again, tmp_path, validator=validator) is None
    assert again.is_scored_by(validator)
    alone = Trainer(config, store, CPU, watcher=StopAt(2, signal.SIGTERM))
    assert run_training(alone, tmp_path / "unscored") is None  # all is done


def test_who_asks_again_to_stop_is_not_kept_waiting(store, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "SAME_EVENT_S", -1)
    with pytest.raises(KeyboardInterrupt):
        run_training(Trainer(tiny("log_every=1"), store, CPU, watcher=StopAt(2, signal.SIGINT, times=2)), tmp_path)
    assert not (tmp_path / "state.pth").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "settings",
    [
        ["optimiser.clip_norm=1.0", "ema=0.9"],  # Muon
        ["optimiser.name=adam", "schedule.name=step", "ema=0", "accumulate=2"],
        ["optimiser.skip_loss=0.2", "residual_start=0.3", "schedule.warmup=2"],
    ],
    ids=["muon", "adam", "skipping"],
)
def test_a_run_stopped_and_resumed_ends_as_one_that_never_stopped(settings, number, store, tmp_path):
    config = tiny("iterations=9", "log_every=1", *settings)
    whole = trained(config, store, tmp_path / "whole")
    # Twice, as where a launcher passes on what the process is told as well.
    stopped = Trainer(config, store, CPU, watcher=StopAt(4, number, times=2))
    assert number == run_training(stopped, tmp_path / "parts")
    assert stopped.iteration == 4
    resumed = trained(config, store, tmp_path / "parts")
    assert resumed.iteration == whole.iteration == 9
    assert resumed.skipped == whole.skipped
    expected, got = everything(whole), everything(resumed)
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    logs = [table(tmp_path / run / LOG) for run in ("whole", "parts")]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    exported = [checkpoint.read(tmp_path / run) for run in ("whole", "parts")]
    assert exported[0].facts == exported[1].facts
    assert all(torch.equal(exported[0].tensors[name], exported[1].tensors[name]) for name in exported[0].tensors)


def test_a_run_with_a_teacher_goes_on_as_if_it_had_not_stopped(store, tmp_path, monkeypatch):
    """In the middle of a pool of batches, whose answers are asked again."""
    monkeypatch.setattr("liif_cli.distil.POOL", 2)
    teacher = trained(tiny("iterations=1", "seed=5"), store, tmp_path / "teacher").exported()
    runs = []
    for stops in ((19,), (4, 19)):
        for iterations in stops:
            trainer = Trainer(tiny(f"iterations={iterations}"), store, CPU)
            trainer.learn_from(teacher, "teacher")
            if iterations != stops[0]:
                trainer.resume(tmp_path / "parts")
            # The rates of the whole run in its first part too.
            trainer.config = dataclasses.replace(trainer.config, schedule=Schedule(name="step", milestones=()))
            run_training(trainer, tmp_path / ("parts" if len(stops) > 1 else "whole"))
        runs.append(everything(trainer))
    assert [name for name in runs[0] if not torch.equal(runs[0][name], runs[1][name])] == []


def test_a_step_repeated_after_a_crash_is_logged_once(store, tmp_path):
    config = tiny("iterations=6", "log_every=1", "save_every=3")
    trained(config, store, tmp_path / "run")
    state = torch.load(tmp_path / "run" / STATE, weights_only=True)
    trained(dataclasses.replace(config, iterations=3), store, tmp_path / "early")
    (tmp_path / "run" / STATE).write_bytes((tmp_path / "early" / STATE).read_bytes())  # crashed before saving again
    again = trained(config, store, tmp_path / "run")
    assert torch.load(tmp_path / "run" / STATE, weights_only=True)["iteration"] == state["iteration"] == again.iteration
    rows = table(tmp_path / "run" / LOG)
    assert [int(row["iteration"]) for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_state_that_cannot_be_read_is_said(store, tmp_path):
    (tmp_path / STATE).write_bytes(b"PK nothing")
    with pytest.raises(TrainingError, match=r"state\.pth"):
        Trainer(tiny(), store, CPU).resume(tmp_path)
    trained(tiny("iterations=1"), store, tmp_path / "other")
    with pytest.raises(TrainingError, match="cannot be resumed"):
        Trainer(tiny("model.args.encoder_spec.args.n_feats=16"), store, CPU).resume(tmp_path / "other")


# -- the step --------------------------------------------------------------------------------------------------------


def test_accumulated_parts_give_the_whole_batchs_step(store):
    whole, parts = (Trainer(tiny("batch=4", "optimiser.name=adam", more), store, CPU) for more in
                    ("accumulate=1", "accumulate=2"))  # fmt: skip
    for trainer in (whole, parts):
        trainer.step()
    assert whole.losses() == pytest.approx(parts.losses(), rel=1e-5)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_training_lowers_the_loss(store, tmp_path):
    adam = ("optimiser.name=adam", "optimiser.learning_rate=5e-3", "optimiser.skip_loss=0")
    config = tiny("iterations=60", "log_every=10", "batch=4", "sample.queries=64", *adam)
    trained(config, store, tmp_path)
    losses = [float(row["loss"]) for row in table(tmp_path / LOG)]
    assert losses[-1] < 0.75 * losses[0]


def test_a_run_that_diverges_stops_and_names_the_iteration_and_saves_nothing_after(store, tmp_path):
    trainer = Trainer(tiny("save_every=2"), store, CPU)
    step = trainer.step

    def broken():
        if trainer.iteration == 5:
            with torch.no_grad():
                next(p for p in trainer.model.parameters() if p.requires_grad).fill_(torch.nan)
        step()

    trainer.step = broken
    with pytest.raises(TrainingError, match="nan at iteration 5"):
        run_training(trainer, tmp_path)
    assert torch.load(tmp_path / STATE, weights_only=True)["iteration"] == 4
    assert all(value.isfinite().all() for value in checkpoint.read(tmp_path).tensors.values())


def test_a_step_too_large_for_the_machine_is_an_error_with_the_remedy(store, tmp_path, monkeypatch):
    trainer = Trainer(tiny("batch=6", "accumulate=2"), store, CPU)
    monkeypatch.setattr(trainer, "step", lambda: torch.empty(2**60))
    with pytest.raises(MemoryBudgetError, match=r"out of memory on cpu in a step of 6 samples.*--set accumulate=3,"):
        run_training(trainer, tmp_path)


def test_no_step_is_skipped_before_the_warm_up_is_over(store):
    """Or dark pictures, whose loss begins high, would never be learned from."""
    trainer = Trainer(tiny("optimiser.skip_loss=1e-6", "schedule.warmup=3"), store, CPU)
    for _ in range(5):
        trainer.step()
    assert trainer.skipped == 2


def test_a_run_whose_steps_are_all_skipped_ends_with_a_word(store, monkeypatch):
    """Nothing that is skipped can bring the loss down."""
    monkeypatch.setattr(train_module, "MOST_SKIPPED", 3)
    trainer = Trainer(tiny("optimiser.skip_loss=1e-6", "schedule.warmup=2"), store, CPU)
    for _ in range(4):
        trainer.step()
    with pytest.raises(TrainingError, match=r"the last 3 steps, to iteration 4, .*--set optimiser\.skip_loss=0"):
        trainer.step()


def test_a_step_with_too_large_a_loss_changes_nothing(store):
    trainer = Trainer(tiny("optimiser.skip_loss=1e-6", "schedule.warmup=0"), store, CPU)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.step()
    assert trainer.skipped == trainer.iteration == 1
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_the_average_follows_the_weights_by_its_decay(store):
    trainer = Trainer(tiny("ema=0.5", "optimiser.skip_loss=0"), store, CPU)
    name = "imnet.layers.0.weight"
    expected = trainer.model.state_dict()[name].clone()
    for iteration in range(12):
        trainer.step()
        decay = min(0.5, (1 + iteration) / (10 + iteration))
        expected = decay * expected + (1 - decay) * trainer.model.state_dict()[name]
    assert torch.allclose(trainer.average[name], expected, atol=1e-6)


def test_half_precision_computes_nearly_the_same_and_keeps_float32_weights(store):
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(tiny(f"precision={precision}", "optimiser.skip_loss=0"), store, CPU)
        trainer.step()
        losses += trainer.losses()
        assert all(value.dtype == torch.float32 for value in trainer.model.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_torch_compile_that_fails_is_said_and_done_without(store, monkeypatch):
    notes = []

    class Notes(StopAt):
        def note(self, text):
            notes.append(text)

    def failing(module, mode):
        def call(*arguments):
            raise RuntimeError("no compiler here")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    plain, other = (Trainer(tiny(f"compile={how}"), store, CPU, watcher=Notes(0, 0)) for how in ("off", "on"))
    plain.step()
    other.step()
    assert len(notes) == 1
    assert "RuntimeError" in notes[0]
    assert plain.losses() == other.losses()


def test_a_module_that_compiles_is_used_compiled(store, monkeypatch):
    """Networks have parameters that are not trained, and no gradients of those may be asked for."""
    notes, calls = [], []

    class Notes(StopAt):
        def note(self, text):
            notes.append(text)

    monkeypatch.setattr(torch, "compile", lambda module, mode: lambda *arguments: calls.append(1) or module(*arguments))
    trainer = Trainer(tiny("compile=on"), store, CPU, watcher=Notes(0, 0))
    assert any(not value.requires_grad for value in trainer.model.parameters())
    trainer.step()
    trainer.step()
    assert not notes
    assert len(calls) == 3  # of which one proves


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.filterwarnings("ignore")  # what torch.compile is written with is deprecated
@pytest.mark.parametrize("how", ["off", "on"])
@pytest.mark.parametrize("teacher", [False, True])
def test_a_gpu_trains_as_the_cpu_does(store, how, teacher):
    """Compiled, all of a step's kernels start as one graph, whose gradients another start overwrites."""
    losses, notes = [], []

    class Notes(StopAt):
        def note(self, text):
            notes.append(text)

    for device in (CPU, torch.device("cuda")):
        settings = ["precision=float32", "optimiser.skip_loss=0", f"compile={how if device.type == 'cuda' else 'off'}"]
        trainer = Trainer(tiny(*settings), store, device, watcher=Notes(0, 0))
        if teacher:
            trainer.learn_from(trainer.exported(), "itself")
        for _ in range(12):
            trainer.step()
        losses.append(trainer.losses())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert not notes
    assert how == "off" or trainer._network.call.graphs


@pytest.mark.parametrize(("device", "settings", "world", "graphs"), [
    ("cuda", [], 1, True), ("cuda", ["accumulate=2"], 1, False), ("cuda", [], 2, False), ("cpu", [], 1, False)
])  # fmt: skip
def test_a_step_starts_as_one_graph_where_nothing_outlives_it(store, monkeypatch, device, settings, world, graphs):
    """Gradients of a part of a step, and those that DDP holds, would be overwritten."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda module, mode: asked.append(mode) or module)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda module, **_: module)
    trainer = Trainer(tiny("compile=off", "batch=2", *settings), store, CPU)
    trainer.config = dataclasses.replace(trainer.config, compile="on")
    trainer.device, trainer.processes = torch.device(device), trainer.processes._replace(world=world)
    trainer._prepared()
    assert asked == ["reduce-overhead" if graphs else None]


def test_where_graphs_do_not_work_compiling_still_may():
    notes = []

    def compile(function, mode):
        def call(value):
            if mode:
                raise RuntimeError("no graphs here")
            return function(value)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compile)
        patch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
        made = Compiled(lambda value: value + 1, notes.append, graphs=True)
        assert made(1) == made(1) == 2
    assert not made.graphs
    assert not made.is_plain
    assert not notes


def test_a_table_takes_new_columns(tmp_path):
    for row in ({"iteration": 1, "x2": 30}, {"iteration": 2, "x4": 27}, {"iteration": 3, "x2": 31}):
        train_module._append(tmp_path / "table.csv", row)
    assert (tmp_path / "table.csv").read_text().split() == ["iteration,x2,x4", "1,30,", "2,,27", "3,31,"]


# -- schedules -------------------------------------------------------------------------------------------------------


def test_the_official_schedule_halves_at_fifths_of_the_run():
    schedule = load_train("edsr-baseline-liif").schedule
    at = {iteration: rate_factor(schedule, iteration, 1000) for iteration in (0, 199, 200, 400, 599, 600, 800, 999)}
    assert at == {0: 1, 199: 1, 200: 0.5, 400: 0.25, 599: 0.25, 600: 0.125, 800: 0.0625, 999: 0.0625}


def test_the_cosine_rises_falls_and_ends_at_its_share():
    schedule = Schedule("cosine", warmup=10, final=0.1)
    values = [rate_factor(schedule, iteration, 110) for iteration in range(111)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == 1
    assert values[60] == pytest.approx(0.55)
    assert values[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(values[10:]))


def test_the_trapezoid_is_level_until_its_fall_and_longer_when_the_run_is():
    schedule = Schedule("trapezoid", warmup=10, final=0.1, fall=0.4)
    values = [rate_factor(schedule, iteration, 100) for iteration in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[9:61] == [1] * 52
    assert values[80] == pytest.approx(0.55)
    assert values[100] == pytest.approx(0.1)
    assert [rate_factor(schedule, iteration, 200) for iteration in range(61)] == values[:61]


# -- beginning from a model ------------------------------------------------------------------------------------------


def test_a_run_begins_with_the_weights_it_is_given(store, tmp_path):
    first = trained(tiny("iterations=2"), store, tmp_path)
    second = Trainer(tiny("seed=7"), store, CPU)
    second.start_from(checkpoint.read(tmp_path), "run")
    for name, value in first.average.items():
        assert torch.equal(second.model.state_dict()[name], value)
        assert torch.equal(second.average[name], value)
    second.step()
    other = Trainer(tiny("model.args.imnet_spec.args.hidden_list=[4]"), store, CPU)
    with pytest.raises(ModelError, match="another network"):
        other.start_from(checkpoint.read(tmp_path), "run")


def test_a_model_comes_nearer_to_its_teacher(store, tmp_path):
    """Not to the pictures: the teacher is an untrained network, which answers something else."""
    teacher = Trainer(tiny("seed=5"), store, CPU).exported()
    trainer = Trainer(tiny("iterations=80", "ema=0", "optimiser.learning_rate=0.01"), store, CPU)
    trainer.learn_from(teacher, "teacher")
    batch = next(trainer._source.batches(0, range(4), CPU))
    assert (batch.high_res - trainer.sampler.batch(0, range(4), CPU).high_res).abs().mean() > 0.05

    def distance():
        with torch.no_grad():
            return float((trainer._network(*batch[:3]) - batch.high_res).abs().mean())

    before = distance()
    run_training(trainer, tmp_path)
    assert distance() < before / 2


def test_a_teacher_of_one_scale_and_one_for_a_fitted_picture_are_refused(store, photographs, tmp_path):
    with pytest.raises(UsageError, match="x2 only"):
        Trainer(tiny(), store, CPU).learn_from(Trainer(tiny(name="edsr-baseline-x2"), store, CPU).exported(), "edsr")
    one = open_store(photographs / "0.png", tmp_path)
    fitted = Trainer(tiny(name="siren"), one, CPU).exported()
    with pytest.raises(UsageError, match="fitted picture"):
        Trainer(tiny(), store, CPU).learn_from(fitted, "siren")
    with pytest.raises(UsageError, match="one picture"):
        Trainer(tiny(name="siren"), one, CPU).learn_from(Trainer(tiny(), store, CPU).exported(), "light")


def test_a_validation_is_named_after_its_folder(photographs, tmp_path, monkeypatch):
    folder = tmp_path / "photos.v2"
    shutil.copytree(photographs, folder)
    monkeypatch.chdir(folder)
    assert [Validator(Path(given), Validation()).name for given in (folder, ".", "0.png")] == ["photos.v2"] * 2 + ["0"]


def test_what_published_tables_score_on_luma_is_scored_so(photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "Set5" / "HR")
    settings = Validation(scales=(2.0,), pictures=1)
    luma = Validator(tmp_path / "Set5", settings)
    assert (luma.name, luma.channel) == ("Set5, 1 of 4", "y")  # which is no score of Set5
    parts = dataclasses.replace(settings, pictures=0, crop=32)
    assert Validator(tmp_path / "Set5", parts).name == "Set5, 32 pixels in the middle"
    assert Validator(photographs, settings).channel == "rgb"
    assert Validator(tmp_path / "Set5", dataclasses.replace(settings, channel="rgb")).channel == "rgb"


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("siren", ["sample.kind=crops"], "sample.kind=picture"),
        ("liif-light", ["sample.kind=picture", "sample.augment=none"], "sample.kind=crops"),
    ],
)
def test_samples_that_a_network_would_learn_nothing_from_are_refused(name, settings, words):
    with pytest.raises(UsageError, match=words):
        network(load_train(name, settings))


def test_a_teacher_is_not_shown_jpeg_files():
    with pytest.raises(UsageError, match="leave one of both out"):
        network(dataclasses.replace(load_train("liif-jpeg"), teacher="liif-light"))


def test_too_little_memory_to_score_names_what_to_set(store, photographs, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise MemoryBudgetError("choose a smaller output")

    monkeypatch.setattr(Validator, "scores", refuse)
    config = tiny("iterations=9", "save_every=8", "validation.every=2", "validation.scales=[2]")
    with pytest.raises(MemoryBudgetError, match=r"the run is saved.*validation\.crop"):
        run_training(Trainer(config, store, CPU), tmp_path, validator=Validator(photographs, config.validation))
    assert torch.load(tmp_path / STATE, weights_only=True)["iteration"] == 2


def test_parts_that_do_not_divide_are_refused(store):
    with pytest.raises(UsageError, match="accumulate"):
        tiny("accumulate=3", "batch=4")


# -- validation ------------------------------------------------------------------------------------------------------


def test_validation_scores_by_the_protocol_and_shows_a_crop(store, photographs, tmp_path):
    config = tiny("iterations=4", "validation.every=2", "validation.scales=[2, 2.5]", "validation.pictures=2")
    trainer = Trainer(config, store, CPU)
    assert run_training(trainer, tmp_path, validator=Validator(photographs, config.validation)) is None
    rows = table(tmp_path / VALIDATION)
    assert [row["iteration"] for row in rows] == ["2", "4"]
    facts = checkpoint.read(tmp_path).facts
    assert facts["scores"][f"{photographs.stem}, 2 of 4"]["x2.5"] == pytest.approx(float(rows[-1]["x2.5"]))
    assert facts["training"]["iteration"] == 4
    with Image.open(tmp_path / SAMPLE) as sample:
        assert sample.size == (3 * 70 + 8, 60)  # the largest scale: 28 x 24 pixels, enlarged


def test_a_picture_that_leaves_nothing_to_score_is_refused_before_any_training(photographs, tmp_path):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "icon.png")
    with pytest.raises(InputError, match=r"icon\.png: 20x20 leaves nothing to score at x3"):
        Validator(tmp_path, Validation())


def test_a_run_is_saved_before_its_scores_which_may_fail(store, photographs, tmp_path, monkeypatch):
    config = tiny("iterations=2", "validation.scales=[2]")
    validator = Validator(photographs, config.validation)
    monkeypatch.setattr(validator, "scores", lambda *_: (_ for _ in ()).throw(InputError("lost")))
    with pytest.raises(InputError, match="lost"):
        run_training(Trainer(config, store, CPU), tmp_path, validator=validator)
    assert checkpoint.read(tmp_path).facts["training"]["iteration"] == 2


def test_scores_that_a_stop_or_a_failure_cost_are_made_up(store, photographs, tmp_path, monkeypatch):
    config = tiny("iterations=5", "validation.every=2", "validation.scales=[2]", "validation.pictures=1")
    validator = Validator(photographs, config.validation)
    with monkeypatch.context() as failing:
        failing.setattr(validator, "scores", lambda *_: (_ for _ in ()).throw(MemoryBudgetError("too little")))
        with pytest.raises(MemoryBudgetError):
            run_training(Trainer(config, store, CPU), tmp_path, validator=validator)
    again = Trainer(config, store, CPU)
    again.resume(tmp_path)
    assert again.iteration == 2
    run_training(again, tmp_path, validator=validator)
    assert [row["iteration"] for row in table(tmp_path / VALIDATION)] == ["2", "4", "5"]


def test_a_deep_encoder_starts_gently_whatever_its_blocks():
    encoders = {
        "edsr-baseline": {"n_resblocks": 2, "n_feats": 8},
        "rdn": {"G0": 4, "RDNconfig": "A"},
        "rcan": {"n_resgroups": 1, "n_resblocks": 2, "n_feats": 16},
    }
    for name, args in encoders.items():
        made = {}
        for size in (1.0, 0.25):
            config = tiny()
            spec = {"name": name, "args": {**args, "no_upsampling": True}}
            torch.manual_seed(0)
            model = build({**config.model, "args": {**config.model["args"], "encoder_spec": spec}})
            start_gently(model, size)
            made[size] = model.state_dict()
        changed = [key for key in made[1.0] if not torch.equal(made[1.0][key], made[0.25][key])]
        assert changed
        assert all(torch.equal(made[1.0][key] * 0.25, made[0.25][key]) for key in changed)
    with pytest.raises(UsageError, match="no residual blocks"):
        start_gently(build(load_train("siren").model), 0.5)


def test_a_resumed_run_keeps_its_scores(store, photographs, tmp_path):
    config = tiny("iterations=2", "validation.scales=[2]")
    run_training(Trainer(config, store, CPU), tmp_path, validator=Validator(photographs, config.validation))
    again = Trainer(config, store, CPU)
    again.resume(tmp_path)
    assert list(again.exported().facts["scores"][photographs.stem]) == ["x2"]


@pytest.mark.parametrize(("name", "color", "extra"), [("others", "rgb", 6), ("Set5", "y", 0)])
def test_validation_scores_are_those_of_eval(photographs, tmp_path, name, color, extra):
    shutil.copytree(photographs, tmp_path / name)
    config = Validation(scales=(2.0, 2.5))
    model = build(tiny().model)
    found = Validator(tmp_path / name, config).scores(model, CPU).psnr
    checkpoint.write(tmp_path / "model.safetensors", Checkpoint(tiny().model, model.state_dict(), {}))
    (method,) = load_methods([str(tmp_path / "model.safetensors")], [])
    for scale in config.scales:
        protocol = Protocol(color=color, border=math.ceil(scale) + extra)
        scores = [score for _, score in evaluate(Work([method], [find(str(tmp_path / name), [])], [scale], protocol))]
        assert found[f"x{scale:g}"] == pytest.approx(np.mean([score.psnr for score in scores]), abs=1e-4)


# -- every preset ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("source", ["generated", "photographs"])
def test_every_preset_trains_and_its_model_upscales_a_picture(name, source, tmp_path, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.getbasetemp() / "liif-cache"
    monkeypatch.setenv("LIIF_CACHE", str(cache))
    data = _pictures(tmp_path_factory) if source == "generated" else SMALL
    if source == "photographs" and not SMALL.is_dir():
        pytest.skip(f"needs the photographs of {SMALL}")
    if load_train(name).sample.kind == "picture":
        data = min(data.iterdir())
    run = tmp_path / "run"
    iterations = "iterations=20" if source == "photographs" else "iterations=2"
    settings = [part for setting in [*shrunk(name), iterations] for part in ("--set", setting)]
    result = CliRunner().invoke(app, ["train", name, "--data", str(data), "-o", str(run), "--device", "cpu", *settings])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{run / 'model.safetensors'}\n"
    assert json.loads((run / CONFIG).read_text())["iterations"] == int(iterations.partition("=")[2])
    picture = np.random.default_rng(1).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    out = liif_cli.load(run, device="cpu", precision="float32").upscale(picture, scale=2.5)
    assert out.shape == (23, 28, 3)


def _pictures(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "generated"
    if not folder.is_dir():
        folder.mkdir()
        random = np.random.default_rng(2)
        for number in range(3):
            Image.fromarray(random.integers(0, 256, (260, 256 + number, 3), dtype=np.uint8)).save(
                folder / f"{number}.png"
            )
    return folder
