"""``liif train``: recipes shown and changed, runs begun, stopped, resumed and shared, and every mistake said."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import photo, save

from liif_cli import checkpoint
from liif_cli.cli.train import _alone
from liif_cli.config import load_train, presets
from liif_cli.distributed import Processes
from liif_cli.errors import UsageError
from liif_cli.models import build

LIGHT = ("model.args.encoder_spec.args.n_resblocks=1", "model.args.encoder_spec.args.n_feats=8",
         "model.args.imnet_spec.args.hidden_list=[8, 8]", "sample.low_res_side=8", "sample.queries=32",
         "batch=4", "precision=float32", "log_every=1")  # fmt: skip


def settings(*more):
    return [part for setting in (*LIGHT, *more) for part in ("--set", setting)]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "photos"
    for number in range(3):
        save(folder / f"{number}.png", photo(48, 56, seed=number))
    return folder


@pytest.fixture
def train(cli, data, monkeypatch, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("LIIF_CACHE", str(tmp_path / "cache"))

    def run(*arguments, preset="liif-light", sets=()):
        return cli("train", preset, "--data", data, "--device", "cpu", *settings(*sets), *arguments)

    yield run
    torch.set_num_threads(threads)


def in_process(data, run, *arguments, command=("-m", "liif_cli")):
    """The command in a process of its own."""
    environment = {**os.environ, "LIIF_CACHE": str(data.parent / "cache"), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *command, "train", "liif-light", "--data", data, "-o", run, "--device", "cpu", *arguments]
    return subprocess.Popen(
        [str(part) for part in line], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_recipes_are_listed_without_loading_torch(cli):
    listed = cli("train", "--list")
    assert listed.code == 0
    lines = listed.out.splitlines()
    assert [line.split()[0] for line in lines] == presets()
    assert all(re.match(r"\S+ {2,}\S+", line) for line in lines)
    code = (
        "import sys; from liif_cli.cli import main\n"
        "try: main(['train', '--list'])\nfinally: assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_dry_run_prints_what_a_run_saves_and_writes_nothing(train, cli, tmp_path):
    dry = cli("train", "liif-light", "--dry-run", *settings("iterations=1"))
    assert dry.code == 0
    assert not (tmp_path / "runs").exists()
    assert train(sets=["iterations=1"]).code == 0
    assert json.loads(dry.out) == json.loads((tmp_path / "runs" / "liif-light" / "config.json").read_text())


def test_a_run_tells_where_its_model_is_and_the_model_upscales(train, cli, tmp_path):
    ran = train("-o", "run", sets=["iterations=2"])
    assert (ran.code, ran.out) == (0, "run/model.safetensors\n")
    assert "3 pictures" in ran.err
    assert re.search(r"iteration 2/2: loss 0\.\d+, [\d.]+ it/s, 0:00:00 left", ran.err)
    picture = save(tmp_path / "small.png", photo(9, 11))
    assert cli("upscale", picture, "--scale", "2.7", "-m", "run", "-o", "out.png").code == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.json", "log.csv", "model.safetensors", "state.pth"
    ]  # fmt: skip


def test_quiet_prints_the_result_alone(train):
    ran = train("-q", "-o", "run", sets=["iterations=1"])
    assert (ran.code, ran.out, ran.err) == (0, "run/model.safetensors\n", "")


def test_validation_scores_are_printed_saved_and_exported(train, data, tmp_path):
    ran = train("-o", "run", "--val", data, sets=["iterations=2", "validation.scales=[2]"])
    score = re.search(r"PSNR x2 ([\d.]+) dB", ran.err)
    assert score is not None
    assert checkpoint.read(tmp_path / "run").facts["scores"]["photos"]["x2"] == pytest.approx(float(score[1]), abs=0.01)
    assert (tmp_path / "run" / "sample.png").is_file()


def test_an_existing_run_is_left_alone_unless_told_otherwise(train, tmp_path):
    assert train("-o", "run", sets=["iterations=2"]).code == 0
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = train("-o", "run", sets=["iterations=3"])
    assert again.code == 5
    assert "--resume" in again.err
    assert "--overwrite" in again.err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    done = train("-o", "run", "--resume", sets=["iterations=2"])
    assert done.code == 0
    assert "are done" in done.err
    # A run from before a setting was there goes on with the setting's default.
    config = Path("run/config.json")
    older = json.loads(config.read_text())
    del older["schedule"]["fall"]
    config.write_text(json.dumps(older))
    assert train("-o", "run", "--resume", sets=["iterations=4"]).code == 0
    assert torch.load(tmp_path / "run" / "state.pth", weights_only=True)["iteration"] == 4
    assert train("-o", "run", "--overwrite", sets=["iterations=1"]).code == 0
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == ["1"]


def test_a_run_goes_on_with_its_own_settings_only(train, cli, data):
    train("-o", "run", sets=["iterations=1"])
    other = train("-o", "run", "--resume", sets=["iterations=2", "seed=9"])
    assert other.code == 2
    assert "seed = 0, not 9" in other.err
    assert "liif train --resume -o run --data DIR" in other.err
    other = train("-o", "run", "--resume", sets=["optimiser.clip_norm=0.5"])
    assert "was begun with optimiser.clip_norm = 1.0, not 0.5;" in other.err
    assert cli("train", "-o", "run", "--resume", "--data", data, "--device", "cpu", "--set", "iterations=2").code == 0
    assert train("-o", "fresh", "--resume", sets=["iterations=1"]).code == 0  # nothing to go on with: it begins


def test_a_dry_run_that_goes_on_shows_the_settings_of_the_run(train, cli):
    assert train("-o", "run", sets=["iterations=1", "save_every=7"]).code == 0
    dry = train("-o", "run", "--resume", "--dry-run")
    assert (json.loads(dry.out)["iterations"], json.loads(dry.out)["save_every"]) == (1, 7)
    assert train("-o", "run", "--resume", "--dry-run", sets=["seed=9"]).code == 2


def test_a_run_goes_on_to_the_length_it_was_begun_with(train, tmp_path):
    train("-o", "run", sets=["iterations=1", "save_every=7"])
    assert train("-o", "run", "--resume").code == 0  # not to the recipe's 100,000
    assert train("-o", "run", "--resume", sets=["iterations=2"]).code == 0
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert (saved["iterations"], saved["save_every"]) == (2, 7)


def test_settings_that_cannot_be_read_are_no_reason_to_throw_a_run_away(train, tmp_path):
    train("-o", "run", sets=["iterations=1"])
    (tmp_path / "run/config.json").write_text('{"speed": 3}')
    ran = train("-o", "run", "--resume", sets=["iterations=2"])
    assert ran.code == 5
    assert "unknown setting 'speed'" in ran.err
    assert "--start run" in ran.err


@pytest.mark.parametrize("option", ["--start", "--teacher"])
def test_a_model_that_does_not_fit_is_refused_before_anything_is_decoded(train, monkeypatch, tmp_path, option):
    monkeypatch.setattr("liif_cli.data.open_store", lambda *args, **options: pytest.fail("decoded"))
    spec = load_train("edsr-baseline-x2").model
    checkpoint.write(tmp_path / "x2.safetensors", checkpoint.Checkpoint(spec, build(spec).state_dict(), {}))
    ran = train("-o", "run", option, "x2.safetensors")
    assert ran.code in (2, 3)
    assert "x2.safetensors" in ran.err


def test_a_path_that_no_file_can_have_is_one_line(cli, data):
    long = "x" * 300
    for arguments in (
        ["train", "liif-light", "--data", long],
        ["train", "liif-light", "--data", data, "-o", long],
        ["eval", "--dataset", long],
        ["upscale", long, "--scale", "2"],
    ):
        ran = cli(*arguments)
        assert ran.code in (1, 2, 5), ran.err
        assert ran.err.count("\n") == 1, ran.err


def test_a_run_begins_with_the_weights_of_a_model(train, cli, tmp_path):
    train("-o", "first", sets=["iterations=1"])
    assert (
        train(
            "-o",
            "second",
            "--start",
            "first",
            sets=["iterations=1", "optimiser.learning_rate=0", "optimiser.muon_rate=0"],
        ).code
        == 0
    )
    first, second = (checkpoint.read(tmp_path / name).tensors for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    wrong = train("-o", "third", "--start", "default", sets=["iterations=1"])
    assert wrong.code == 3
    assert "another network" in wrong.err


def test_a_run_remembers_what_it_began_with(train, tmp_path):
    train("-o", "first", sets=["iterations=1"])
    still = ["optimiser.learning_rate=0", "optimiser.muon_rate=0"]
    train("-o", "second", "--start", "first", sets=["iterations=1", *still])
    assert json.loads((tmp_path / "second" / "config.json").read_text())["start"] == "first"
    # Ended before it was saved, it begins with the same again.
    for name in ("state.pth", "model.safetensors"):
        (tmp_path / "second" / name).unlink()
    assert train("-o", "second", "--resume", sets=["iterations=1", *still]).code == 0
    first, second = (checkpoint.read(tmp_path / name).tensors for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_goes_on_with_the_teacher_it_began_with(train, tmp_path):
    for name, how in (("whole", ["iterations=4"]), ("parts", ["iterations=2"])):
        train("-o", "teacher", sets=["iterations=1", "seed=8"])
        began = train("-o", name, "--teacher", "teacher", sets=[*how, "schedule.name=step", "schedule.milestones=[]"])
        assert began.code == 0, began.err
        shutil.rmtree(tmp_path / "teacher")
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["teacher"] == "teacher"
    sets = ["iterations=4", "schedule.name=step", "schedule.milestones=[]"]
    assert train("-o", "parts", "--resume", "--teacher", "teacher", sets=sets).code == 0
    other = train("-o", "parts", "--resume", "--teacher", "default", sets=["iterations=9", *sets[1:]])
    assert other.code == 2
    assert 'teacher = "teacher", not "default"' in other.err
    train("-o", "untaught", sets=sets)
    whole, parts, untaught = (checkpoint.read(tmp_path / name).tensors for name in ("whole", "parts", "untaught"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(whole[name], untaught[name]) for name in whole)
    train("-o", "whole", "--overwrite", sets=["iterations=1"])
    assert not (tmp_path / "whole" / "teacher.safetensors").exists()


def test_a_run_ended_before_it_was_saved_still_has_its_teacher(train, tmp_path):
    train("-o", "teacher", sets=["iterations=1", "seed=8"])
    train("-o", "run", "--teacher", "teacher", sets=["iterations=2"])
    first = checkpoint.read(tmp_path / "run").tensors
    shutil.rmtree(tmp_path / "teacher")
    for name in ("state.pth", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    assert train("-o", "run", "--resume", sets=["iterations=2"]).code == 0
    again = checkpoint.read(tmp_path / "run").tensors
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("option", ["--start", "--teacher"])
def test_a_run_does_not_take_away_the_model_it_begins_with(train, tmp_path, option):
    train("-o", "run", sets=["iterations=1"])
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = train("-o", "run", option, "run", "--overwrite", sets=["iterations=1"])
    assert again.code == 2
    assert "another folder" in again.err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "run" / "state.pth").exists()


def test_the_folder_of_another_programs_model_is_left_alone(train, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"architectures": ["ViT"]}')
    (other / "model.safetensors").write_bytes(b"weights")
    for more in ([], ["--overwrite"], ["--resume"]):
        ran = train("-o", "other", *more, sets=["iterations=1"])
        assert ran.code == 5
        assert "not a training run" in ran.err
    assert (other / "model.safetensors").read_bytes() == b"weights"


def test_a_finished_run_is_scored_when_it_was_not(train, data, tmp_path):
    train("-o", "run", sets=["iterations=1"])
    scored = train("-o", "run", "--resume", "--val", data, sets=["iterations=1", "validation.scales=[2]"])
    assert scored.code == 0
    assert "PSNR x2" in scored.err
    assert checkpoint.read(tmp_path / "run").facts["scores"]["photos"].keys() == {"x2"}
    again = train("-o", "run", "--resume", "--val", data, sets=["iterations=1", "validation.scales=[2]"])
    assert "PSNR" not in again.err
    assert Path(again.out.strip()) == Path("run/model.safetensors")


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_full_disk_is_said(train, data, tmp_path):
    """By way of the largest file that the process may write."""
    train("-o", "first", sets=["iterations=1"])  # the pictures are in the cache now
    run = in_process(
        data, tmp_path / "run", *settings("iterations=1"),
        command=("-c", "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
                 " runpy.run_module('liif_cli', run_name='__main__')"),
    )  # fmt: skip
    err = run.communicate()[1]
    assert run.returncode == 5, err
    assert "state.pth: too large a file" in err.splitlines()[-1]
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.suffix in (".pth", ".part")]


def test_a_model_without_its_state_is_not_thrown_away(train, tmp_path):
    train("-o", "run", sets=["iterations=1"])
    (tmp_path / "run" / "state.pth").unlink()
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = train("-o", "run", "--resume", sets=["iterations=2"])
    assert again.code == 5
    assert "--start" in again.err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_what_benchmarks_set_apart_is_not_trained_on(train, data):
    for name in ("DIV2K_valid_HR", "DIV2K_train_LR_bicubic/X2"):
        save(data / name / "apart.png", photo(64, 64))
    ran = train("-o", "run", "-v", sets=["iterations=1"])
    assert ran.code == 0
    assert "DIV2K_valid_HR: held-out" in ran.err
    assert "DIV2K_train_LR_bicubic: held-out" in ran.err


def test_validation_pictures_among_the_others_are_not_trained_on(train, data):
    save(data / "scored" / "one.png", photo(64, 64))
    ran = train("-o", "run", "-v", "--val", "photos/scored", sets=["iterations=1", "validation.scales=[2]"])
    assert ran.code == 0, ran.err
    assert "scored/one.png: what is scored is not trained on" in ran.err


def test_a_run_s_own_settings_lead_to_the_run(train, tmp_path):
    assert train("-o", "elsewhere/mine", sets=["iterations=1"]).code == 0
    config = "elsewhere/mine/config.json"
    onwards = train("--resume", preset=config, sets=["iterations=2"])
    assert onwards.code == 0, onwards.err
    assert onwards.out == "elsewhere/mine/model.safetensors\n"


@pytest.mark.parametrize("content", ["3", "null", '[{"a": 1}]', '["a"]'])
def test_another_program_s_config_is_no_run(train, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    ran = train("-o", "run", sets=["iterations=1"])
    assert ran.code == 5
    assert "holds something that is not a training run" in ran.err


def test_left_out_pictures_are_named(train, data):
    save(data / "tiny.png", photo(10, 10))
    (data / "broken.png").write_text("nothing")
    ran = train("-o", "run", sets=["iterations=1"])
    assert ran.code == 0
    assert "tiny.png" in ran.err
    assert "broken.png" in ran.err
    assert "2 pictures left out, 3 used" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["name a recipe", "--list"]),
        (["nosuch", "--data", "photos"], 2, ["nosuch", "liif-light"]),
        (["liif-light"], 2, ["--data"]),
        (["liif-light", "--data", "absent"], 1, ["absent", "no such folder"]),
        (["liif-light", "--data", "photos", "--val", "absent"], 1, ["absent"]),
        (["liif-light", "--data", "photos", "--set", "colour=3"], 2, ["colour"]),
        (["liif-light", "--data", "photos", "--resume", "--overwrite"], 2, ["--resume", "--overwrite"]),
        (["liif-light", "--data", "photos", "--set", "validation.scales=[]"], 2, ["validation.scales", "at least one"]),
        (["liif-light", "--data", "photos", "--set", "sample.scale_max=inf"], 2, ["scale_max", "finite"]),
        (["liif-light", "--data", "photos", "--start", "nosuch"], 3, ["nosuch"]),
        (["liif-light", "--data", "photos", "--teacher", "nosuch"], 3, ["nosuch"]),
        (["liif-light", "--data", "photos", "--device", "gpu9"], 2, ["gpu9"]),
        (["liif-light", "--data", "photos"], 1, ["larger pictures"]),
        (["faces-32-256-liif", "--data", "photos"], 1, ["larger pictures", "smaller sample.size_max"]),
        (["siren", "--data", "photos"], 1, ["one picture"]),
        (
            ["edsr-baseline-x4", "--data", "absent", "--set", "sample.scale_min=2", "--set", "sample.queries=9"],
            2,
            ["x4 only", "scale_min=4"],
        ),
        (["siren", "--data", "photos", "--val", "photos"], 2, ["--val"]),
        (["liif-light", "--data", "photos", "-o", "photos"], 5, ["photos", "not a training run"]),
        (["liif-light", "--dry-run", "--set", "model.name=vgg"], 3, ["vgg"]),
    ],
)
def test_mistakes_are_one_line_with_the_contracts_code(cli, data, monkeypatch, tmp_path, arguments, code, words):
    monkeypatch.setenv("LIIF_CACHE", str(tmp_path / "cache"))
    ran = cli("train", *arguments)
    assert ran.code == code, ran.err
    last = ran.err.strip().splitlines()[-1]
    assert all(word in last for word in words), ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_with_the_sharing_is_told_before_anything_is_decoded(train, monkeypatch, tmp_path):
    monkeypatch.setattr("liif_cli.distributed.joined", lambda processes, device: contextlib.nullcontext())
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    monkeypatch.setenv("WORLD_SIZE", "3")
    ran = train()
    assert ran.code == 2
    assert "batch = 4 cannot be shared by 3 processes" in ran.err
    for device in ("cuda:0", "mps"):
        ran = train("--device", device)
        assert ran.code == 2
        assert f"--device {device}: of several processes each has its own; use cuda, cpu or auto" in ran.err
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert "more processes than GPUs, of which 2 can be used here: --nproc-per-node 2" in train("--device", "auto").err
    assert not (tmp_path / "cache" / "pictures").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_saves_leaves_with_the_signals_code_and_goes_on(train, data, tmp_path, number, code):
    run = tmp_path / "run"
    process = in_process(data, run, *settings("iterations=1000000"))
    deadline = time.monotonic() + 120
    while not (run / "log.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    saved = torch.load(run / "state.pth", weights_only=True)["iteration"]
    assert f"saved at iteration {saved}" in err
    ran = train("-o", run, "--resume", sets=[f"iterations={saved + 2}"])
    assert ran.code == 0, ran.err
    assert torch.load(run / "state.pth", weights_only=True)["iteration"] == saved + 2


def test_a_run_that_is_under_way_is_left_alone(train, tmp_path):
    assert train("-o", "run", sets=["iterations=1"]).code == 0
    before = (tmp_path / "run" / "state.pth").read_bytes()
    with _alone(tmp_path / "run"):
        ran = train("-o", "run", "--resume", sets=["iterations=2"])
    assert (ran.code, ran.out) == (2, "")
    assert "liif: run: another process is training there; wait for it" in ran.err
    assert (tmp_path / "run" / "state.pth").read_bytes() == before
    assert train("-o", "run", "--resume", sets=["iterations=2"]).code == 0


def test_tasks_that_do_not_know_of_each_other_are_refused(train, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert train("-o", "run", sets=["iterations=1"]).code == 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    ran = train("-o", "run", "--overwrite", sets=["iterations=1"])
    assert ran.code == 2
    assert "SLURM has started 4 of this" in ran.err
    assert "torchrun" in ran.err
    monkeypatch.setenv("WORLD_SIZE", "two")
    ran = train("-o", "run", "--overwrite", sets=["iterations=1"])
    assert ran.code == 2
    assert "WORLD_SIZE='two'" in ran.err


def test_a_share_of_a_teacher_needs_one(train):
    for arguments, share in (((), 0.5), (("--teacher", "default"), 0)):
        ran = train("-o", "run", *arguments, sets=[f"teacher_share={share}"])
        assert ran.code == 2
        assert f"teacher_share = {share}" in ran.err


def test_two_processes_end_where_one_does(train, data, tmp_path):
    """With Muon and Adam, a clipped gradient, an average, and each process's share in two parts."""
    sets = ["iterations=10", "accumulate=2", "schedule.warmup=0"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "liif_cli")
    process = in_process(data, tmp_path / "two", *settings(*sets), command=launcher)
    assert train("-o", "one", sets=sets).code == 0
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("model.safetensors") == 1
    one, two = (checkpoint.read(tmp_path / name).tensors for name in ("one", "two"))
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    torch.manual_seed(0)  # as the run began
    fresh = build(json.loads((tmp_path / "one" / "config.json").read_text())["model"]).state_dict()
    moved = min(float((one[name] - fresh[name]).abs().max()) for name in one if name.startswith("imnet"))
    print(f"two processes and one: {apart:.1e} apart, after weights moved by {moved:.1e}")
    assert apart < 1e-5
    assert moved > 1e-3
    rows = []
    for name in ("one", "two"):
        with Path(tmp_path / name / "log.csv").open(newline="") as file:
            rows.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert rows[0] == pytest.approx(rows[1], abs=1e-5)


def test_a_batch_that_processes_cannot_share_is_refused():
    assert [list(Processes(rank, 2).share(6)) for rank in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(UsageError, match="multiple"):
        Processes(0, 4).share(6)


def test_what_a_killed_run_left_is_no_obstacle_and_goes(train, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in (".config.json.0a1b2c3d.part", "teacher.safetensors"):
        (run / name).write_bytes(b"half")
    assert train("-o", run, sets=["iterations=1"]).code == 0
    assert not list(run.glob(".*.part"))


def test_a_log_that_a_power_cut_damaged_does_not_keep_a_run_from_going_on(train, tmp_path):
    run = tmp_path / "run"
    assert train("-o", run, sets=["iterations=2"]).code == 0
    for damage in ("\0\0\0\0\0", "iter"):
        with (run / "log.csv").open("a") as log:
            log.write(damage)
    assert train("-o", run, "--resume", sets=["iterations=3"]).code == 0
    rows = (run / "log.csv").read_text().splitlines()
    assert all(row.partition(",")[0].isdecimal() for row in rows[1:])
