"""The command line itself: quick to answer, clear in its help, one line for whatever is not understood."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, Cli, save

import liif_cli
from liif_cli import __version__, weights
from liif_cli.cli import main
from liif_cli.errors import OutputError
from liif_cli.weights import cache

HEAVY = ("torch", "numpy", "PIL", "pyvips", "scipy", "skimage", "tqdm", "requests")
SIZES = ("--scale", "--size", "--width", "--height", "--longest", "--megapixels", "--box")


def timed(program: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A program in a process of its own, and the seconds of the processor that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ran, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["upscale", "--help"], ["--version"], ["upscale"]])
def test_answers_need_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from liif_cli.cli import main\n"
        f"try: main({arguments})\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    bare = "import typer.rich_utils"  # what no answer can do without
    assert timed(program)[0].stderr.splitlines()[-1] == "[]"
    timed(bare)  # both have been compiled and read from the disk now
    # The best of three, in turns and in the processor's time, for what else a machine does only ever adds: two and
    # a half times as much was seen.
    turns = [(timed(program)[1], timed(bare)[1]) for _ in range(3)]
    assert min(taken for taken, _ in turns) < 4 * min(least for _, least in turns)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file that is always full")
@pytest.mark.parametrize("arguments", ["--version", "--help", "upscale --help"])
def test_help_that_finds_no_room_is_one_line(arguments: str) -> None:
    command = f"{sys.executable} -m liif_cli {arguments} > /dev/full"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr.count("\n")) == (5, 1), ran.stderr
    assert ran.stderr.startswith("liif: standard output: ")


def test_a_model_of_ones_own_needs_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(*_: object, **__: object) -> str:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(cache, "user_cache_dir", homeless)
    monkeypatch.delenv("LIIF_CACHE", raising=False)
    assert weights.resolve(str(TINY)) == TINY
    with pytest.raises(OutputError, match="LIIF_CACHE"):
        weights.resolve("my-own")


def test_a_deleted_working_folder_is_one_line(tmp_path: Path) -> None:
    program = "import os, sys; os.rmdir(os.getcwd()); from liif_cli.cli import main; main(['--version'])"
    (tmp_path / "gone").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(liif_cli.__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "gone", env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert ran.stderr == "liif: the folder that you are in has been deleted; change to another one\n"


def test_a_file_that_looks_like_an_option_gets_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "-dash.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["liif", "upscale", "-dash.png", "--scale", "2"])
    with pytest.raises(SystemExit):
        main(sys.argv[1:])
    assert "for the file write ./-dash.png" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "threads"), [(None, None), (0.5, "1"), (1.0, "1"), (10**6, None)])
def test_libraries_are_told_of_a_containers_limit(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, threads: str | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("liif_cli.cli.processors", lambda: limit)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_the_version(cli: Cli) -> None:
    assert cli("--version").out == f"liif {__version__}\n"


def test_without_arguments_it_helps(cli: Cli) -> None:
    ran = cli()
    assert "upscale" in ran.out + ran.err
    assert "Traceback" not in ran.err
    ran = cli("upscale")
    assert ran.code == 2
    assert ran.err == (
        "liif: nothing to upscale: name pictures, folders or patterns, as in: liif upscale photo.jpg --scale 2.7"
        " (liif upscale --help has more)\n"
    )


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_help_shows_every_option_and_examples_that_parse(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ran = cli("upscale", "--help")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= int(columns)
    wanted = [*SIZES, "--output", "--format", "--quality", "--strip", "--overwrite", "--skip-existing", "--model"]
    wanted += ["--device", "--precision", "--memory", "--ensemble", "--recursive", "--files-from", "--dry-run"]
    wanted += ["--fail-fast", "--max-pixels", "--json", "--quiet", "--verbose"]
    assert [option for option in wanted if option not in ran.out] == []
    assert "default: half" in " ".join(ran.out.replace("│", " ").split())
    if columns == "200":
        examples = re.findall(r"^ (?:.*\| )?(liif upscale .*?)(?: > \S+)?\s*$", ran.out, re.MULTILINE)
        assert len(examples) >= 9
        for example in examples:
            # Understood as far as the inputs, which are not there.
            ran = cli(*[word.strip("'") for word in example.split()[1:]], "--dry-run", stdin=b"missing.jpg")
            assert ran.code in (1, 2)
            assert re.search("no such file|no picture matches|not a picture", ran.err), example


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["enlarge"], "No such command 'enlarge'"),
        (["--upscale"], "No such option: --upscale"),
        (["upscale", "a.png", "--scal", "2"], "--scal"),
        (["upscale", "a.png", "--scale"], "--scale"),
        (["upscale", "a.png", "--quality", "101"], "'101' is not from 1 to 100"),
        (["upscale", "a.png", "--max-pixels", "-4"], "'-4' is not above 0"),
    ],
)
def test_what_is_not_understood_is_one_line(cli: Cli, arguments: list[str], says: str) -> None:
    ran = cli(*arguments)
    assert ran.code == 2
    (line,) = ran.err.splitlines()
    assert line.startswith("liif: ")
    assert says in line
    assert "--help)" in line


def test_a_picture_that_cannot_be_enlarged_is_told_of_without_torch(tmp_path: Path) -> None:
    (tmp_path / "junk.png").write_text("no picture")
    save(tmp_path / "there.png")
    save(tmp_path / "there_x2.png")
    for name, option, code, says in (
        ("nosuch.png", "--json", 1, "nosuch.png: no such file"),
        ("junk.png", "--json", 1, "junk.png: is not a picture"),
        ("there.png", "--json", 5, "there_x2.png: already exists"),
        ("there.png", "--skip-existing", 0, "there_x2.png  already exists, skipped"),
    ):
        arguments = ["upscale", str(tmp_path / name), "--scale", "2", option]
        program = (
            f"import sys; from liif_cli.cli import main\ntry: main({arguments})\nfinally: print('torch' in sys.modules)"
        )
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        told, loaded = ran.stdout.splitlines()
        assert (ran.returncode, loaded) == (code, "False"), ran.stderr
        if option == "--json":
            record = json.loads(told)
            assert (record["exit_code"], record["seconds"], record["output"]) == (code, 0, None)
            assert says in record["error"]
            assert says in ran.stderr
        else:
            assert says in told


def test_options_can_come_from_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    save(Path("a.png"))
    for variable, value, code in (
        ("LIIF_MODEL", "no-such-model", 3),
        ("LIIF_DEVICE", "toaster", 2),
        ("LIIF_PRECISION", "int3", 2),
        ("LIIF_MEMORY", "lots", 2),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            ran = cli("upscale", "a.png", "--scale", "2")
            assert (ran.code, value in ran.err) == (code, True)
    monkeypatch.setenv("LIIF_DEVICE", "toaster")
    assert cli("upscale", "a.png", "--scale", "2", "--device", "cpu").code == 0  # a flag comes before it


def test_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"_LIIF_COMPLETE": "complete_bash", "COMP_WORDS": "liif upscale --sk", "COMP_CWORD": "2"}
    program = [sys.executable, "-c", "from liif_cli.cli import main; main()"]
    ran = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["--skip-existing"]


def test_defaults_in_brackets_are_no_markup(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command, default in (
        ("train", "runs/PRESET"),
        ("eval", "the scale, and scale + 6 on DIV2K"),
        ("upscale", "jpg 95"),
    ):
        assert f"[default: {default}" in cli(command, "--help").out
