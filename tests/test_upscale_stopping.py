"""A batch that is stopped at any moment leaves whole files only, and goes on from there to the same end."""

import json
import os
import queue
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

import numpy as np
import pytest
from conftest import THOROUGH, TINY, photo, save
from PIL import Image

from liif_cli.cli import stopping
from liif_cli.cli.batch_report import Report

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and forks are POSIX")

COUNT = 30
COMMAND = ["upscale", "in", "--scale", "6", "-o", "out", "-m", str(TINY), "--precision", "float32"]

# Loads everything once, then a copy of itself runs each command: seconds are saved each time.
NURSERY = """
import json, os, signal, sys
import torch, pyvips, PIL.Image
import liif_cli.batch, liif_cli.upscaler, liif_cli.cli, liif_cli.cli.batch_report
from liif_cli.__main__ import main

def watching(place, times):
    # Python looks for signals, among others, where a function begins and where one of C's has ended.
    counted = {}
    def watch(frame, event, argument):
        if event not in ("call", "c_return") or signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, None):
            return
        here = f"{frame.f_code.co_filename}:{frame.f_code.co_name}:{frame.f_lineno}:{event}"
        counted[here] = counted.get(here, 0) + 1
        if here == place and counted[here] == times:
            with open("interrupted", "w"):
                os.kill(os.getpid(), signal.SIGINT)
    return watch, counted

for line in sys.stdin:
    arguments, folder, place, times = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        if os.path.exists("stdin"):
            os.dup2(os.open("stdin", os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["liif", *arguments]
        if place is not None:
            watch, counted = watching(place, times)
            sys.setprofile(watch)
        try:
            main()
        finally:
            sys.setprofile(None)
            if place == "":
                with open("places", "w") as file:
                    json.dump(counted, file)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    def __init__(self, environment: dict[str, str]) -> None:
        # A file whose opening or closing is interrupted may be closed a little later.
        line = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", NURSERY]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    @property
    def pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def start(self, folder: Path, *arguments: str, place: str | None = None, times: int = 0) -> int:
        """Begin a command, interrupted where it comes to a place so many times; with "" its places are noted."""
        stdin, stdout = self.pipes
        stdin.write(json.dumps([arguments, str(folder), place, times]) + "\n")
        stdin.flush()
        self.child = int(stdout.readline())
        return self.child

    def end(self, limit_s: float = 120) -> int:
        """The exit code; negative for a signal's number."""
        _, stdout = self.pipes
        hangs = not select.select([stdout], [], [], limit_s)[0]
        if hangs:
            os.kill(self.child, signal.SIGKILL)
        code = int(stdout.readline())
        assert not hangs, "it hangs"
        return code

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        self.process.wait()


@pytest.fixture(scope="module")
def nursery(plain_environment: dict[str, str]) -> Iterator[Nursery]:
    nursery = Nursery(plain_environment)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def expected(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a batch makes that nobody stops."""
    folder = prepared(tmp_path_factory.mktemp("whole"))
    nursery.start(folder, *COMMAND)
    assert nursery.end() == 0
    made = contents(folder / "out")
    assert len(made) == COUNT
    return made


def prepared(folder: Path) -> Path:
    for number in range(COUNT):
        save(folder / f"in/{number:02}.png", photo(8 + number % 5, 12, seed=number))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")} if folder.is_dir() else {}


def leave_time(folder: Path, generator: random.Random) -> None:
    """Wait for some of the batch, then a moment more."""
    wanted = generator.randrange(0, COUNT - 2)
    limit = time.monotonic() + 30
    while len(list(folder.glob("out/[0-9]*"))) < wanted and time.monotonic() < limit:
        time.sleep(0.001)
    time.sleep(generator.random() * 0.03)


def traceless(folder: Path) -> None:
    assert "Traceback" not in (folder / "stderr").read_text()
    assert "Exception" not in (folder / "stderr").read_text()


@pytest.mark.parametrize("seed", range(25 if THOROUGH else 2))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda n: n.name)
def test_a_stopped_batch_goes_on_to_the_same_end(
    nursery: Nursery, expected: dict[str, bytes], tmp_path: Path, number: signal.Signals, seed: int
) -> None:
    prepared(tmp_path)
    child = nursery.start(tmp_path, *COMMAND)
    leave_time(tmp_path, random.Random(seed))
    os.kill(child, number)
    code = nursery.end()
    made = contents(tmp_path / "out")
    if number == signal.SIGKILL:
        assert code in (-number, 0)
        made = {name: content for name, content in made.items() if not name.startswith(".")}
    else:
        assert code in (128 + number, 0)
        traceless(tmp_path)
        if code:
            said = (tmp_path / "stderr").read_text().splitlines()
            assert said[-1] == ("liif: interrupted" if number == signal.SIGINT else "liif: terminated")
    # Whole files only, and nothing beside them.
    assert made.items() <= expected.items()

    nursery.start(tmp_path, *COMMAND, "--skip-existing", "--json")
    assert nursery.end() == 0
    made_then = {name: content for name, content in contents(tmp_path / "out").items() if not name.startswith(".")}
    assert made_then == expected
    records = [json.loads(line) for line in (tmp_path / "stdout").read_text().splitlines()]
    assert sum(record["skipped"] for record in records) == len(made)


LOCKING = ("threading.py", "queue.py", "concurrent/futures/")


def test_an_interruption_leaves_no_lock_taken() -> None:
    waiting: queue.Queue[int] = queue.Queue()

    def interrupted_at(wanted: int) -> int:
        """How many times Python looks for signals in the queue's code, with an interruption the wanted time."""
        looked = 0

        def watch(frame: FrameType, event: str, argument: Any) -> None:
            nonlocal looked
            if event in ("call", "c_return") and frame.f_code.co_filename.endswith(LOCKING[:2]):
                looked += 1
                if looked == wanted:
                    os.kill(os.getpid(), signal.SIGINT)

        try:
            with stopping.stoppable():
                sys.setprofile(watch)
                waiting.put(1)
                waiting.get(timeout=1)
        finally:
            sys.setprofile(None)
        return looked

    count = interrupted_at(0)
    assert count > 10
    for wanted in range(1, count + 1):
        with pytest.raises(stopping.Stopped):
            interrupted_at(wanted)
        assert waiting.mutex.acquire(blocking=False)
        waiting.mutex.release()
        assert not waiting.not_empty._waiters  # type: ignore[attr-defined]
        waiting.queue.clear()


@pytest.mark.parametrize(
    ("command", "made"),
    [
        (COMMAND, "out"),
        (["upscale", "in/00.png", "--scale", "60", "-o", "out.tif", "-m", str(TINY), "--memory", "700M"], "out.tif"),
    ],
    ids=["batch", "picture"],
)
def test_it_stops_wherever_it_is_interrupted(nursery: Nursery, tmp_path: Path, command: list[str], made: str) -> None:
    def fresh(name: str) -> Path:
        for number in range(4):
            save(tmp_path / name / f"in/{number:02}.png", photo(8 + number % 5, 12, seed=number))
        return tmp_path / name

    whole = fresh("whole")
    nursery.start(whole, *command, place="")
    assert nursery.end() == 0
    expected = contents(whole / made) or {made: (whole / made).read_bytes()}
    places: dict[str, int] = json.loads((whole / "places").read_text())
    generator = random.Random(0)
    # What other threads wait for is taken and given back in the first kind.
    kinds = [place for place in places if any(part in place for part in LOCKING)], list(places)
    chosen = places if THOROUGH else [place for kind in kinds for place in generator.sample(kind, 6)]
    interrupted = 0
    for number, place in enumerate(chosen):
        folder = fresh(str(number))
        nursery.start(folder, *command, place=place, times=generator.randint(1, places[place]))
        code = nursery.end()
        if (folder / "interrupted").exists():  # threads do not take the same turns each time
            interrupted += 1
            said = (folder / "stderr").read_text()
            # At the very end there may be nothing left to stop.
            assert code == 130 or (code == 0 and "written" in said), (place, said)
            assert code == 0 or said.splitlines()[-1] == "liif: interrupted", (place, said)
        left = contents(folder / made) or {
            path.name: path.read_bytes() for path in folder.glob("out*") if path.is_file()
        }
        assert left.items() <= expected.items(), place
    assert interrupted > len(chosen) / 2


def test_one_large_picture_is_discarded(nursery: Nursery, tmp_path: Path) -> None:
    save(tmp_path / "photo.png", photo(200, 200))
    for extension in ("png", "tif", "dzi"):
        child = nursery.start(
            tmp_path,
            "upscale",
            "photo.png",
            "--scale",
            "40",
            "--format",
            extension,
            "-m",
            str(TINY),
            "--memory",
            "900M",
        )
        limit = time.monotonic() + 20
        while not [name for name in contents_names(tmp_path) if name.startswith(".")] and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(child, signal.SIGINT)
        assert nursery.end() == 130
        assert (tmp_path / "stderr").read_text() == "liif: interrupted\n"
        assert contents_names(tmp_path) == {"photo.png", "stdout", "stderr"}


def test_an_interruption_that_gets_lost_is_heard_all_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    class Swallowing:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    @stopping.stoppable()
    def work() -> None:
        stopping.check()
        Swallowing()
        stopping.check()

    with pytest.raises(stopping.Stopped) as stopped:
        work()
    assert stopped.value.exit_code == 130
    assert capfd.readouterr().err == ""
    with stopping.stoppable():
        stopping.check()


def contents_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_stopping_while_standard_input_is_awaited(nursery: Nursery, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stdin")
    child = nursery.start(tmp_path, "upscale", "-", "--scale", "2", "-o", "out.png", "-m", str(TINY))
    with (tmp_path / "stdin").open("wb") as writing:
        writing.write(b"\x89PNG")
        writing.flush()
        time.sleep(1)
        os.kill(child, signal.SIGINT)
        assert nursery.end() == 130
    assert (tmp_path / "stderr").read_text() == "liif: interrupted\n"
    assert contents_names(tmp_path) == {"stdin", "stdout", "stderr"}


def test_a_pipe_that_stays_silent_does_not_keep_it_from_stopping(nursery: Nursery, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    child = nursery.start(tmp_path, "upscale", "a.png", "b.png", "--scale", "2", "-m", str(TINY))
    limit = time.monotonic() + 20
    while not (tmp_path / "a_x2.png").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(child, signal.SIGINT)
    assert nursery.end() == 130
    assert (tmp_path / "stderr").read_text().splitlines() == [
        "liif: 2 pictures: 1 written, 1 not tried; run it again with --skip-existing to go on",
        "liif: interrupted",
    ]


def test_one_who_overwrites_is_not_told_to_skip(capsys: pytest.CaptureFixture[str]) -> None:
    for overwrite in (False, True):
        how = {"as_json": False, "quiet": False, "verbose": False, "picture_to_stdout": False}
        Report(2, model="default", **how).interrupted(overwrite=overwrite)
        assert ("--skip-existing" in capsys.readouterr().err) != overwrite


def test_a_reader_who_leaves_early_ends_it_quietly(nursery: Nursery, tmp_path: Path) -> None:
    prepared(tmp_path)
    os.mkfifo(tmp_path / "stdout")
    nursery.start(tmp_path, *COMMAND, "--json")
    with (tmp_path / "stdout").open() as reading:
        first = reading.readline()
    assert nursery.end() == 1
    assert json.loads(first)["output"] == "out/00_x6.png"
    assert (tmp_path / "stderr").read_text() == "liif: stopped: the program that read standard output has closed it\n"
    made = contents(tmp_path / "out")
    assert 1 <= len(made) < COUNT
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as image:
            assert np.asarray(image).shape[1] == 72


def test_a_picture_whose_reader_leaves_early(nursery: Nursery, tmp_path: Path) -> None:
    save(tmp_path / "photo.png", photo(100, 100))
    os.mkfifo(tmp_path / "stdout")
    nursery.start(tmp_path, "upscale", "photo.png", "-o", "-", "--format", "bmp", "--scale", "4", "-m", str(TINY))
    with (tmp_path / "stdout").open("rb") as reading:
        assert reading.read(2) == b"BM"
    assert nursery.end() == 1
    assert (tmp_path / "stderr").read_text() == "liif: stopped: the program that read standard output has closed it\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize(
    "line",
    [
        "upscale -m {tiny} photos/photo.png --scale 2 -o -",
        "upscale -m {tiny} photos/photo.png --scale 2 --json",
        "upscale -m {tiny} photos/photo.png --scale 2",
        "upscale photos/photo.png --scale 2 --dry-run",
        "eval -m {tiny} --dataset photos --scales 2",
        "eval -m {tiny} --dataset photos --scales 2 --csv -",
        "fetch-weights --list",
    ],
)
def test_standard_output_that_takes_nothing(nursery: Nursery, tmp_path: Path, line: str) -> None:
    save(tmp_path / "photos/photo.png", photo(40, 50))
    (tmp_path / "stdout").symlink_to("/dev/full")
    nursery.start(tmp_path, *line.format(tiny=TINY).split())
    assert nursery.end() == 5
    assert (tmp_path / "stderr").read_text() == (
        "liif: standard output: the disk is full; free some space or name another folder\n"
    )


def test_an_interruption_while_modules_are_loaded_ends_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-m", "liif_cli"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_a_reader_who_reads_no_more_does_not_keep_it_from_stopping(tmp_path: Path) -> None:
    """One signal is enough, and nothing is left where the picture waited."""
    save(tmp_path / "a.png", photo(200, 200))
    (tmp_path / "temporary").mkdir()
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "liif_cli", "upscale", "a.png", "--scale", "3", "-o", "-", "-m", str(TINY)],
            env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=said,
        )
    assert process.stdout is not None
    assert process.stdout.read(8) == b"\x89PNG\r\n\x1a\n"
    time.sleep(0.5)  # the pipe is full
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    process.stdout.close()
    assert list((tmp_path / "temporary").iterdir()) == []
    *before, last = (tmp_path / "said").read_text().splitlines()
    assert last == "liif: terminated"
    assert all(line.startswith("liif: finishing a.png") for line in before)  # on a slow machine
