"""Reading, painting and writing side by side; and every way in which one of them can fail the others."""

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, photo, save
from PIL import Image

from liif_cli import batch, jobs, upscaler
from liif_cli.cli.batch_report import Report
from liif_cli.errors import InputError, LiifError, MemoryBudgetError, OutputError
from liif_cli.images import Picture, layers_bytes


class Log:
    """A listener that remembers, and may raise."""

    def __init__(self, then: Callable[[str], None] = lambda event: None) -> None:
        self.events: list[str] = []
        self.then = then

    def say(self, event: str) -> None:
        self.events.append(event)
        self.then(event)

    def started(self, job: jobs.Job) -> None:
        self.say(f"start {job.source.path.stem}")

    def painted(self, job: jobs.Job, share: float) -> None:
        self.say(f"paint {job.source.path.stem} {share:.2f}")

    def finishing(self, job: jobs.Job) -> None:
        self.say(f"finish {job.source.path.stem}")

    def finished(self, result: batch.Result) -> None:
        self.say(f"{'fail' if result.error else 'done'} {result.source.stem}")


class Painter(upscaler.Upscaler):
    """Paints flat grey in `bands` bands, and does something else first."""

    def __init__(self, bands: int = 2, first: Callable[[Picture, int], None] = lambda picture, number: None) -> None:
        self.number = bands
        self.first = first
        self.model = "painter"
        self.memory_bytes = 1 << 30

    @property
    def device(self) -> Any:
        return upscaler.torch.device("cpu")

    def paints(self, *window: Any) -> bool:
        return True

    def open(self, picture: Picture, budget_bytes: int | None = None, *, ensemble: bool = False) -> Any:
        painter = self

        class Opened:
            def bands(
                self, size: tuple[int, int], box: Any, report: Callable[[float], None]
            ) -> Generator[np.ndarray, None, None]:
                edges = np.linspace(0, size[0], painter.number + 1).astype(int)
                for number, (top, bottom) in enumerate(itertools.pairwise(edges)):
                    painter.first(picture, number)
                    yield np.full((bottom - top, size[1], picture.channels), 128, picture.pixels.dtype)
                    report(bottom / size[0])

        return Opened()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abcde"):
        save(tmp_path / f"{name}.png", photo(10 + number, 8))
    threads = threading.active_count()
    yield tmp_path
    limit = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < limit:
        time.sleep(0.01)
    assert threading.active_count() <= threads  # nothing is left running
    assert not [path.name for path in tmp_path.rglob(".*.part")]  # and nothing half-written


def go(names: str, painter: upscaler.Upscaler, log: Log | None = None, **options: Any) -> list[batch.Result]:
    fail_fast = options.pop("fail_fast", False)
    limit_process = options.pop("limit_process", False)
    wanted = jobs.Options(upscaler.Sizing(scale=2.0), **options)
    plan = jobs.plan_jobs(jobs.find_sources([f"{name}.png" for name in names], recursive=False).sources, wanted)
    return batch.run(plan.jobs, painter, wanted, log or Log(), fail_fast=fail_fast, limit_process=limit_process)


def made(folder: Path) -> str:
    return "".join(sorted(path.stem[0] for path in folder.glob("*_x2.png")))


def test_a_batch_in_order(folder: Path) -> None:
    log = Log()
    results = go("abcde", Painter(), log)
    assert [result.source.stem for result in results] == list("abcde")
    assert [result.output_size for result in results] == [(2 * (10 + number), 16) for number in range(5)]
    assert [event for event in log.events if event.startswith("done")] == [f"done {name}" for name in "abcde"]
    assert made(folder) == "abcde"


def test_the_next_is_read_and_the_last_is_written_while_one_is_painted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    reading, writing = batch.read, batch.open_writer
    written = threading.Event()

    def slow_read(source: Path, **options: Any) -> Picture:
        events.append(f"read {Path(source).stem}")
        return reading(source, **options)

    def open_writer(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.stem == "a_x2":
            written.wait(5)  # the first is written late: while the second is painted
        return writing(path, *arguments, **options)

    def first(picture: Picture, number: int) -> None:
        events.append(f"paint {'abc'[picture.size[0] - 10]}")
        if picture.size[0] == 11:
            written.set()

    monkeypatch.setattr(batch, "read", slow_read)
    monkeypatch.setattr(batch, "open_writer", open_writer)
    results = go("abc", Painter(1, first))
    assert all(result.error is None for result in results)
    assert events.index("paint b") < events.index("paint c")
    limit = events.index("paint b")
    assert "read b" in events[:limit]
    assert written.is_set()


def fails_writing(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    genuine = batch.open_writer

    class Failing:
        def __init__(self, writer: Any) -> None:
            self.writer = writer

        def write(self, rows: np.ndarray) -> None:
            raise error

    def open_writer(path: Path, *arguments: Any, **options: Any) -> Any:
        @batch.contextmanager
        def opened() -> Iterator[Any]:
            with genuine(path, *arguments, **options) as writer:
                yield Failing(writer) if path.stem.startswith(name) else writer

        return opened()

    monkeypatch.setattr(batch, "open_writer", open_writer)


@pytest.mark.parametrize("error", [OutputError("b_x2.png: the disk is full"), MemoryError(), ZeroDivisionError("bug")])
def test_a_writer_that_fails_while_many_bands_are_still_painted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    painted = []
    fails_writing(monkeypatch, "b", error)
    painter = Painter(12, lambda picture, number: (painted.append(number), time.sleep(0.02))[0])
    results = go("abc", painter)
    assert [result.error is None for result in results] == [True, False, True]
    assert isinstance(results[1].error, MemoryBudgetError if isinstance(error, MemoryError) else type(error))
    assert len(painted) < 36  # painting stopped when nobody took its bands any more
    assert made(folder) == "ac"


@pytest.mark.parametrize("error", [InputError("no"), MemoryBudgetError("no"), MemoryError(), ZeroDivisionError("bug")])
@pytest.mark.parametrize("at", [0, 1])
def test_painting_that_fails(folder: Path, error: Exception, at: int) -> None:
    def first(picture: Picture, number: int) -> None:
        if picture.size[0] == 11 and number == at:
            raise error

    results = go("abc", Painter(2, first))
    assert [result.error is None for result in results] == [True, False, True]
    expected = MemoryBudgetError if isinstance(error, MemoryError) else type(error)
    assert isinstance(results[1].error, expected)
    assert made(folder) == "ac"


def test_too_few_rows_are_no_picture(folder: Path) -> None:
    painter = Painter(2)
    painter.number = 0
    (result,) = go("a", painter)
    assert not isinstance(result.error, LiifError)
    assert result.error is not None
    assert made(folder) == ""


def test_a_failed_picture_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one refused before painting nor one that fails in it: tracebacks hold what functions worked on."""
    alive = []
    read = batch.read

    def watched(*args: Any, **options: Any) -> Picture:
        picture = read(*args, **options)
        alive.append(weakref.ref(picture.pixels))
        return picture

    monkeypatch.setattr(batch, "read", watched)

    def fail(picture: Picture, number: int) -> None:
        raise InputError("bad") from ValueError("why")

    save(folder / "b.png", photo(11, 8, channels=4))
    results = go("abc", Painter(first=fail), format="jpg")
    assert [result.error is not None for result in results] == [True] * 3
    assert "JPEG" in str(results[1].error)
    gc.collect()
    assert len(alive) == 3
    assert not any(pixels() is not None for pixels in alive)


def test_memory_that_torch_misses_is_no_bug(folder: Path) -> None:
    def miss(picture: Picture, number: int) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    assert [type(result.error) for result in go("a", Painter(first=miss))] == [MemoryBudgetError]


def test_fail_fast(folder: Path) -> None:
    (folder / "b.png").write_text("no picture")
    results = go("abcde", Painter(), fail_fast=True)
    assert [result.source.stem for result in results] == ["a", "b"]
    assert made(folder) == "a"


@pytest.mark.parametrize(
    "moment", ["start a", "start b", "paint b 0.50", "paint b 1.00", "done a", "done b", "start e"]
)
@pytest.mark.parametrize("what", [KeyboardInterrupt, BrokenPipeError])
def test_a_listener_that_ends_it(folder: Path, moment: str, what: type[BaseException]) -> None:
    def then(event: str) -> None:
        if event == moment:
            raise what

    log = Log(then)
    with pytest.raises(what):
        go("abcde", Painter(), log)
    complete = {"start a": "", "start b": "a", "start e": "abcd", "paint b 0.50": "a"}.get(moment)
    if complete is not None:
        assert made(folder) == complete
    assert "abcde".startswith(made(folder))  # in order, and nothing half
    for path in folder.glob("*_x2.png"):
        Image.open(path).load()


def test_an_interruption_between_the_writer_and_the_painter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def paint(self: Any, report: Any) -> None:
        time.sleep(0.05)  # the writer has opened its file
        raise KeyboardInterrupt

    monkeypatch.setattr(batch._Painting, "paint", paint)
    with pytest.raises(KeyboardInterrupt):
        go("ab", Painter())
    assert made(folder) == ""


def test_an_interruption_before_the_writer_knows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(self: Any, do: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch._Worker, "submit", submit)
    with pytest.raises(KeyboardInterrupt):
        go("ab", Painter())
    assert made(folder) == ""


def test_what_was_painted_is_still_written_and_reported(folder: Path) -> None:
    def first(picture: Picture, number: int) -> None:
        if picture.size[0] == 11:
            raise KeyboardInterrupt

    log = Log()
    with pytest.raises(KeyboardInterrupt):
        go("abc", Painter(2, first), log)
    assert made(folder) == "a"
    assert log.events[-1] == "done a"


def test_a_long_wait_for_what_only_has_to_be_written_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(picture: Picture, number: int) -> None:
        if picture.size[0] == 11:
            raise KeyboardInterrupt

    told = threading.Event()

    def write(self: Any, path: Path, picture: Picture) -> None:
        plain(self, path, picture)
        assert told.wait(10)

    plain = batch._Painting._write_picture
    monkeypatch.setattr(batch._Painting, "_write_picture", write)
    monkeypatch.setattr(batch, "SHORT_S", 0.01)
    log = Log(lambda event: told.set() if event.startswith("finish") else None)
    with pytest.raises(KeyboardInterrupt):
        go("abc", Painter(2, first), log)
    assert log.events[-2:] == ["finish a", "done a"]


def test_large_pictures_are_not_read_ahead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    reading = batch.read

    def read(source: Path, **options: Any) -> Picture:
        held.append(painter.painting)
        return reading(source, **options)

    class Counting(Painter):
        painting = 0

    def first(picture: Picture, number: int) -> None:
        painter.painting = 1 - number

    painter = Counting(2, first)
    monkeypatch.setattr(batch, "read", read)
    monkeypatch.setattr(batch, "AHEAD_SHARE", 1e-12)
    assert all(result.error is None for result in go("abc", painter))
    assert held == [0, 0, 0]  # read between two paintings, never during one


def test_memory_for_the_whole_process(folder: Path) -> None:
    engine = upscaler.load(TINY, memory="1M", device="cpu")
    (result,) = go("a", engine, limit_process=True)
    assert isinstance(result.error, MemoryBudgetError)
    engine = upscaler.load(TINY, memory=str(upscaler.process_bytes() + (1 << 29)), device="cpu")
    (result,) = go("a", engine, limit_process=True)
    assert result.error is None


def test_memory_for_the_whole_process_counts_what_transparency_takes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in use, and room enough for the picture, its layers apart."""
    save(folder / "a.png", photo(1200, 1000, 4))
    budgets = []
    opened = upscaler.Upscaler.open

    def look(self: Any, picture: Picture, budget_bytes: int, **options: Any) -> Any:
        budgets.append(budget_bytes)
        return opened(self, picture, budget_bytes, **options)

    monkeypatch.setattr(upscaler.Upscaler, "open", look)
    monkeypatch.setattr(batch, "layers_bytes", lambda picture: 0)
    monkeypatch.setattr(batch, "within_process", lambda total: total)
    engine = upscaler.load(TINY, memory="1G", device="cpu")
    go("a", engine, limit_process=True, overwrite=True)
    monkeypatch.setattr(batch, "layers_bytes", layers_bytes)
    go("a", engine, limit_process=True, overwrite=True)
    taken = (budgets[0] - budgets[1]) / (1 - batch.WRITER_SHARE)
    assert taken == pytest.approx(1200 * 1000 * (6 + 22), rel=0.01)


def test_nothing_to_do() -> None:
    assert batch.run([], Painter(), jobs.Options(upscaler.Sizing(scale=2.0)), Log()) == []


def test_the_bar_never_goes_back(folder: Path) -> None:
    report = Report(2, model="", as_json=False, quiet=False, verbose=False, picture_to_stdout=False)
    first, second = (jobs.Job(jobs.Source(folder / name), folder, "", ".png") for name in ("a.png", "b.png"))
    seen = []
    for job, share in ((first, 0.5), (first, 1.0), (second, 0.1), (second, 0.9)):  # the first is still being written
        report.painted(job, share)
        seen.append(report.progress.tasks[0].completed)
    assert seen == [0.5, 0.99, 0.99, 0.99]  # it is whole when it is written
    for path in (first.source.path, second.source.path):
        report.finished(batch.Result(path, None, None, None, 0.0, error=InputError("no")))
        seen.append(report.progress.tasks[0].completed)
    assert seen[-2:] == [1.0, 2.0]
