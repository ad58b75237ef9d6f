"""What the README says can be typed, can be typed."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from liif_cli.cli import app
from liif_cli.upscaler import COARSE_QUALITY

README = Path(__file__).parents[1] / "README.md"
runner = CliRunner()


def commands():
    """Every line of the README's shell blocks that calls liif, without its comment and redirections."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if "liif " in line]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    (tmp_path / "holiday" / "day one").mkdir(parents=True)
    (tmp_path / "scans").mkdir()
    for name in ["photo.jpg", "one.png", "screen.png", "holiday/a.jpg", "holiday/day one/b.jpg", "scans/c.tif"]:
        Image.fromarray(pixels).save(tmp_path / name)
    half = np.full((120, 200, 1), 128, np.uint8)
    Image.fromarray(np.concatenate([pixels, half], axis=2)).save(tmp_path / "logo.png")


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("liif upscale")])
def test_the_readmes_upscaling_is_understood(line, pictures):
    words = shlex.split(line.split(" > ")[0])[1:]
    if "*.png" in words:  # the shell's part
        words[words.index("*.png")] = "one.png"
    answer = runner.invoke(app, [*words, "--dry-run"])
    assert answer.exit_code == 0, answer.output
    assert any(name in answer.output for name in ("photo", "screen", "logo", "one", "a_", "c_"))


@pytest.mark.parametrize("line", [line for line in commands() if not line.startswith("liif upscale")])
def test_the_readmes_other_commands_take_these_options(line):
    words = shlex.split(line.split("| ")[-1].split(" > ")[0])
    command, options = words[1], [word for word in words[2:] if word.startswith("-") and len(word) > 1]
    answer = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert answer.exit_code == 0, answer.output
    shown = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", answer.output))
    assert set(options) <= shown


def training():
    """Every command of the README and of the models' card that trains, in one line."""
    for page in (README, README.parent / "weights" / "README.md"):
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("liif train ") and "--list" not in line:
                    yield line.split("  #")[0].strip()


@pytest.mark.parametrize("line", list(training()))
def test_what_is_said_to_train_is_understood(line):
    words = [word for word in shlex.split(line)[1:] if word not in ("--resume", "--dry-run")]
    if words[1].startswith("-"):  # a run that goes on has its recipe from its folder
        words.insert(1, "liif-light")
    answer = runner.invoke(app, [*words, "--dry-run"])
    assert answer.exit_code == 0, answer.output


def test_every_command_stands_in_the_readme_and_has_help():
    text = README.read_text(encoding="utf-8")
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        assert f"liif {name}" in text
        answer = runner.invoke(app, [name, "--help"])
        assert answer.exit_code == 0
        assert len(answer.output) > 300


@pytest.mark.parametrize("script", sorted(path.name for path in (README.parent / "benchmarks").glob("*.py")))
def test_a_measurement_can_be_begun(script):
    command = [sys.executable, str(README.parent / "benchmarks" / script), "--help"]
    assert "--help" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_training_is_measured(tmp_path):
    command = [sys.executable, str(README.parent / "benchmarks" / "training.py"), "--json", str(tmp_path / "out.json")]
    command += ["--preset", "liif-light", "--rounds", "1", "--together", "1", "--warmup", "1"]
    for setting in ("batch=1", "sample.low_res_side=16", "sample.queries=64"):
        command += ["--set", setting]
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads((tmp_path / "out.json").read_text())["times_the_paper"] > 0


def test_a_batch_is_measured():
    command = [sys.executable, str(README.parent / "benchmarks" / "batch.py"), "--count", "2", "--side", "16"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["pictures"] == 2


def test_how_drawn_pictures_are_told_is_measured(tmp_path):
    for kind in ("photos", "drawn"):
        (tmp_path / kind).mkdir()
    astronaut = Image.fromarray(skimage.data.astronaut()[:200, 150:350])
    astronaut.save(tmp_path / "photos" / "astronaut.png")
    chart = Image.new("RGBA", (200, 150), (0, 0, 0, 0))
    for row in range(10):
        ImageDraw.Draw(chart).rectangle((5, 14 * row, 20 + 17 * row, 14 * row + 8), (0, 20 * row, 99))
    chart.save(tmp_path / "drawn" / "chart.png")
    command = [sys.executable, str(README.parent / "benchmarks" / "drawn.py")]
    command += ["--photos", str(tmp_path / "photos"), "--drawn", str(tmp_path / "drawn")]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [row.split(" | ")[1:4] for row in rows[2:4]] == [["photographs", "2", "0"], ["drawn", "1", "1"]]


def test_the_quality_below_which_jpeg_files_have_their_model_is_said_alike_everywhere():
    said = f"of a quality below {COARSE_QUALITY}"
    assert said in " ".join(README.read_text(encoding="utf-8").split())
    shown = runner.invoke(app, ["upscale", "--help"], env={"COLUMNS": "200"}).output
    assert said in " ".join(shown.replace("│", " ").split())
