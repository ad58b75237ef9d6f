"""Many pictures, one after another: what is read, what it becomes, and what happens when one of them fails.

While a picture is painted the next one is read and the one before is compressed and written:

    reading   | b |   c   |   d   |
    painting      |   a   |   b   |   c   |
    writing       |   a   | a b   | b c   | c |

Painting is done by the calling thread, the one that hears Ctrl-C. Whatever ends it ends the writer's part too, within
the writer's own block, so that nothing half-written is left.
"""

from __future__ import annotations

import functools
import io
import math
import os
import queue
import select
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from liif_cli.engine import MIB, joined
from liif_cli.errors import ExistsError, LiifError, MemoryBudgetError, OutputError
from liif_cli.files import cannot_write, is_file, is_folder
from liif_cli.images import (
    Animation,
    Picture,
    check_animation,
    check_output,
    encoding_px,
    fitted,
    format_of,
    layers_bytes,
    open_writer,
    read,
    read_animation,
    read_header,
    write_animation,
    writer_bytes,
)
from liif_cli.jobs import (
    STANDARD,
    Job,
    Options,
    job_makes,
    occupied,
    output_size,
    pipe,
    refuse_idle_quality,
    refuse_original,
    standard_format,
    standard_input,
    temporary_place,
)
from liif_cli.out_of_memory import is_out_of_memory
from liif_cli.sizing import Size
from liif_cli.upscaler import MOST_BYTES, Upscaler, default_bytes, within_process

T = TypeVar("T")

# Of what a picture may take: for the writer's buffers, or the whole output where it is written from memory.
WRITER_SHARE = 0.4
QUEUED_BANDS = 2
# A picture larger than this share of the memory to work in is not read ahead, and one whose output is larger is written
# before the next is painted.
AHEAD_SHARE = 1 / 16
# How often a thread that waits for another looks whether that one has given up.
LOOK_S = 0.1
SHORT_S = 1.0  # a longer wait at the end is told of


class Result(NamedTuple):
    """What became of a job. ``error`` is None where the output was written or, with ``skipped``, was there already.

    An error that is no LiifError is a bug of ours.
    """

    source: Path
    output: Path | None
    size: Size | None
    output_size: Size | None
    seconds: float
    frames: int = 1
    error: Exception | None = None
    skipped: bool = False
    model: str | None = None  # the one that painted it; None where nothing was to be painted, only filtered


class Listener(Protocol):
    """Told of what happens. What it raises ends the batch."""

    def started(self, job: Job) -> None:
        """A picture's turn has come."""

    def painted(self, job: Job, share: float) -> None:
        """About so much of the work with it, in [0, 1], is done."""

    def finishing(self, job: Job) -> None:
        """The batch ends, and waits for one that was painted to be written."""

    def finished(self, result: Result) -> None:
        """It was written, was there already, or failed."""


def run(
    jobs: Sequence[Job],
    upscaler: Upscaler,
    options: Options,
    listener: Listener,
    *,
    fail_fast: bool = False,
    limit_process: bool = False,
) -> list[Result]:
    """Do all jobs and return what became of them, in order. An error of one is its result, and the others go on.

    ``fail_fast`` ends with the first error. ``limit_process``: the upscaler's memory is meant for all of this process,
    not for the picture alone.
    """
    batch = _Batch(upscaler, options, listener, limit_process)
    try:
        batch.do(jobs, fail_fast)
    finally:
        batch.end()
    return batch.results


class _Batch:
    def __init__(self, upscaler: Upscaler, options: Options, listener: Listener, limit_process: bool) -> None:
        self.upscaler = upscaler
        self.options = options
        self.listener = listener
        self.limit_process = limit_process
        # What the process may take, where somebody said so.
        self.limit_bytes = upscaler.memory_bytes if limit_process and upscaler.device.type == "cpu" else None
        self.results: list[Result] = []
        self.failed = False
        self.reader = _Worker("read")
        self.writer = _Worker("write")
        self.paintings: deque[tuple[_Painting, Future[Result]]] = deque()  # the writer's; at most the last two

    def do(self, jobs: Sequence[Job], fail_fast: bool) -> None:
        upcoming = self.read(jobs[0]) if jobs else None
        for number, job in enumerate(jobs):
            assert upcoming is not None
            self.listener.started(job)
            picture = _waited(upcoming)
            if isinstance(picture, _Later):
                self.collect(leave=0)
                picture = _waited(self.read(job, ahead=False))
            upcoming = self.read(jobs[number + 1]) if number + 1 < len(jobs) else None
            self.paint(job, picture)
            del picture
            if fail_fast and self.failed:
                break
        self.collect(leave=0)

    def read(self, job: Job, *, ahead: bool = True) -> Future[_Read]:
        if job.source.path == STANDARD:
            # By this thread: another could not be interrupted while it waits for what may never come.
            return _done(_guarded(lambda: _read(job, self.options, standard_input(), None, self.limit_bytes)))
        most = int(self.upscaler.working_bytes() * AHEAD_SHARE) if ahead else None
        return self.reader.submit(
            lambda: _guarded(lambda: _read(job, self.options, job.source.path, most, self.limit_bytes))
        )

    def paint(self, job: Job, picture: _Read) -> None:
        started = time.perf_counter()
        painting = _guarded(lambda: self.prepare(job, picture, started))
        if isinstance(painting, Exception):
            painting = Result(job.source.path, None, None, None, time.perf_counter() - started, error=painting)
        if isinstance(painting, Result):
            self.collect(leave=0)
            self.report(painting)
            return
        large = painting.held_bytes > self.upscaler.working_bytes() * AHEAD_SHARE
        if large:
            self.collect(leave=0)
        try:
            self.paintings.append((painting, self.writer.submit(painting.write)))
            painting.paint(functools.partial(self.painted, job))
        except BaseException:
            painting.give_up()
            raise
        self.collect(leave=0 if large else 1)

    def prepare(self, job: Job, picture: _Read, started: float) -> _Painting | Result:
        if isinstance(picture, Exception):
            raise picture
        if isinstance(picture, _There):
            return Result(job.source.path, picture.output, None, None, 0.0, skipped=True)
        assert not isinstance(picture, _Later)
        size = output_size(_first(picture).size, self.options)
        output = job.output(self.options, size)
        assert output is not None
        refuse_original(job.source.path, output)
        return _Painting(_Task(job, picture, size, output, started), self.upscaler, self.options, self.limit_process)

    def painted(self, job: Job, share: float) -> None:
        self.listener.painted(job, share)
        self.collect(leave=len(self.paintings))

    def collect(self, leave: int) -> None:
        """Report what is written; wait until at most ``leave`` pictures are not."""
        while self.paintings and (len(self.paintings) > leave or self.paintings[0][1].done()):
            result = _waited(self.paintings[0][1])
            self.paintings.popleft()
            self.report(result)

    def report(self, result: Result) -> None:
        if self.options.skip_existing and isinstance(result.error, ExistsError):  # another program was faster
            result = result._replace(output=result.error.path, error=None, skipped=True)
        self.results.append(result)
        self.failed = self.failed or result.error is not None
        self.listener.finished(result)
        if result.error is not None:
            # The frames of its traceback, and of what caused it, hold the picture: results stay until the batch's end.
            result.error.__traceback__ = result.error.__cause__ = result.error.__context__ = None

    def end(self) -> None:
        """Stop what is not done: an unfinished picture is discarded, one that only has to be written is finished."""
        for painting, _ in self.paintings:
            painting.give_up()
        # The writer is waited for, because it tidies up; the reader only for a moment, because it may wait for a pipe.
        self.reader.close()
        self.writer.close()
        whole = {future: painting.task.job for painting, future in self.paintings if painting.complete}
        with self._writer_waited_for():
            for future in wait(whole, timeout=SHORT_S).not_done:
                with suppress(OSError):  # as below
                    self.listener.finishing(whole[future])
        self.reader.join(LOOK_S)
        for painting, future in self.paintings:
            if painting.complete and future.done() and future.exception() is None:
                result = future.result()
                with suppress(OSError, LiifError):  # whoever listens may be why this is the end
                    if not isinstance(result.error, _GivenUpError):
                        self.report(result)

    @contextmanager
    def _writer_waited_for(self) -> Iterator[None]:
        """Whatever happens meanwhile: an interruption that comes now, too, must leave no unfinished file."""
        try:
            yield
            self.writer.join()
        except BaseException:
            self.writer.join()
            raise


class _Worker:
    """A thread that does one thing after another. Unlike an executor's it does not keep the program from ending."""

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"liif-{name}", daemon=True)
        self._thread.start()

    def submit(self, do: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._tasks.put((do, future))
        return future

    def close(self) -> None:
        """Let the thread end after what it has before it."""
        self._tasks.put(None)

    def join(self, limit_s: float = math.inf) -> None:
        """Wait until it has ended, in short steps, so that signals are heard."""
        limit = time.monotonic() + limit_s
        while self._thread.is_alive() and time.monotonic() < limit:
            self._thread.join(LOOK_S)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            do, future = task
            try:
                future.set_result(do())
            except BaseException as error:
                future.set_exception(error)
            del do, future, task  # they hold a picture, and the next task may be long in coming


def _waited(future: Future[T]) -> T:
    """What a future comes to; waits in short steps, so that signals are heard on Windows, too."""
    while not future.done():
        wait([future], timeout=LOOK_S)
    return future.result()


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


def _guarded(do: Callable[[], T]) -> T | Exception:
    """What a function returns, or the error it raises as a value: it belongs to its job's turn."""
    try:
        return do()
    except Exception as error:
        if is_out_of_memory(error):
            return MemoryBudgetError("out of memory; close other programs, or choose a smaller output")
        return error


class _There(NamedTuple):
    """The output is there already and shall stay."""

    output: Path


class _Later(NamedTuple):
    """Too large to be read while another picture is worked on."""


_Read = Picture | Animation | _There | _Later | Exception


def _read(
    job: Job, options: Options, source: Path | io.BytesIO, most_bytes: int | None, limit_bytes: int | None
) -> _Read:
    if job.source.problem is not None:
        raise job.source.problem
    limit = options.max_pixels
    output, header = job.output(options, None), None
    if output is not None and _is_done(output, options):
        return _There(output)
    if isinstance(source, Path) and (content := pipe(source)) is not None:
        source, most_bytes = content, None  # it does not come again
    if output is None or most_bytes is not None or limit_bytes is not None:
        header = read_header(_from_start(source), max_pixels=limit)
    if output is None and header is not None:
        output = job.output(options, output_size(header.size, options))
        if output is not None and _is_done(output, options):
            return _There(output)
    if header is not None and limit_bytes is not None and header.reading_bytes > limit_bytes:
        raise MemoryBudgetError(
            f"{job.source.path}: to read it takes {-(-header.reading_bytes // MIB)} MiB, and --memory allows"
            f" {limit_bytes // MIB} MiB; raise it"
        )
    if header is not None and most_bytes is not None and header.reading_bytes > most_bytes:
        return _Later()
    if header is None or header.frames > 1:
        animation = read_animation(_from_start(source), max_pixels=limit)
        if animation is not None:
            return _fitted(animation, job, options)
    return _fitted(read(_from_start(source), max_pixels=limit), job, options)


def _is_done(output: Path, options: Options) -> bool:
    """Whether an output is there and shall stay. Raises OutputError where it is there and nobody said what to do."""
    if output == STANDARD or not is_file(output) or options.overwrite:
        return False
    if not options.skip_existing:
        raise occupied(output)
    return True


def _from_start(source: Path | io.BytesIO) -> Path | io.BytesIO:
    if isinstance(source, io.BytesIO):
        source.seek(0)
    return source


def _first(picture: Picture | Animation) -> Picture:
    return picture.frames[0] if isinstance(picture, Animation) else picture


class _Task(NamedTuple):
    job: Job
    picture: Picture | Animation
    size: Size
    output: Path
    started: float


class _ListenerError(Exception):
    """What was raised while progress was told: no error of the picture's."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _GivenUpError(Exception):
    """Raised within the writer's block, so that it tidies up."""


class _Painting:
    """One picture on its way through: bands are painted by the caller of :meth:`paint` and written by that of
    :meth:`write`, at the same time."""

    def __init__(self, task: _Task, upscaler: Upscaler, options: Options, limit_process: bool) -> None:
        self.task = task
        self.options = options
        frames = task.picture.frames if isinstance(task.picture, Animation) else (task.picture,)
        self.frames: tuple[Picture, ...] = frames
        like = frames[0]
        self.model = None
        if upscaler.paints(like.size, task.size, options.box):
            upscaler = upscaler.suited_to(frames[len(frames) // 2])  # for all of them
            self.model = upscaler.model
        self.upscaler = upscaler
        self.held_bytes = len(frames) * task.size[0] * task.size[1] * (like.channels * like.pixels.itemsize + 4)
        total = upscaler.working_bytes()
        on_host = upscaler.device.type == "cpu"
        if limit_process and on_host:
            total = int(within_process(total) * (1 - AHEAD_SHARE))
        if on_host and upscaler.memory_bytes is not None:
            beside = layers_bytes(like)
            if beside >= total:
                raise MemoryBudgetError(
                    f"{task.job.source.path}: needs {-(-beside // MIB)} MiB beside its pixels, and --memory leaves"
                    f" {total // MIB} MiB; raise it"
                )
            total -= beside
        host = total if on_host else min(default_bytes(torch.device("cpu")), upscaler.memory_bytes or MOST_BYTES)
        self.writer_bytes = int(host * WRITER_SHARE)
        self._check(host)
        self.engine_bytes = total - self.writer_bytes if on_host else total
        self._opened = upscaler.open(like, self.engine_bytes, ensemble=options.ensemble)
        self._bands: queue.Queue[np.ndarray] = queue.Queue(QUEUED_BANDS)
        self.complete = False  # whether all bands were handed over
        self._failure: Exception | None = None  # of the painter: nobody brings bands any more
        self._gone = threading.Event()  # the writer has given up: nobody takes bands any more

    def _check(self, host_bytes: int) -> None:
        """Find out before painting what would fail after it, and see that the writer has what it takes."""
        task, options = self.task, self.options
        with _destination(task, options) as path:
            if task.output != STANDARD:
                _make_folder(path.parent, options)
            overwrite = options.overwrite or task.output == STANDARD
            if isinstance(task.picture, Picture):
                known = check_output(
                    path,
                    task.size,
                    task.picture,
                    format=options.format,
                    strip=options.strip,
                    budget_bytes=self.writer_bytes,
                    overwrite=overwrite,
                )
                needed = writer_bytes(known, task.size, task.picture, self.writer_bytes, options.quality)
                if known.streams:  # else it is encoded when all is painted, in what the engine has left
                    self.writer_bytes = max(self.writer_bytes, needed)
            else:
                known = check_animation(path, task.size, self.frames[0], format=options.format, overwrite=overwrite)
                encoding = encoding_px(known, self.frames[0], options.quality, moving=True)
                needed = self.held_bytes + task.size[0] * task.size[1] * encoding
            if needed > host_bytes:
                raise MemoryBudgetError(
                    f"{path}: writing it as {known.name} takes about {-(-needed // MIB)} MiB, and there are"
                    f" {host_bytes // MIB} MiB; raise --memory, or choose another format or a smaller output"
                )
            if task.output == STANDARD:  # for the others it was known before
                refuse_idle_quality(options, [known])
            if isinstance(task.picture, Animation) and self.held_bytes > self.writer_bytes:
                raise MemoryBudgetError(
                    f"{path}: {len(self.frames)} frames of this size take {-(-self.held_bytes // MIB)} MiB, more than"
                    f" the {self.writer_bytes // MIB} MiB there are for them; raise --memory or choose a smaller output"
                )

    def paint(self, report: Callable[[float], None]) -> None:
        """Paint all frames and hand their bands over; an error of it becomes the picture's. ``report`` is told about
        which share of the work is done."""
        done, rows = 0, self.task.size[0] * len(self.frames)
        with closing(self._painted(report)) as bands:
            # To its very end: what a generator that is only dropped has to tidy up hears no Ctrl-C.
            while (band := _guarded(functools.partial(next, bands, None))) is not None:
                if isinstance(band, _ListenerError):
                    raise band.error
                if isinstance(band, Exception):
                    self.give_up(band)
                    return
                if not self._hand_over(band):
                    return
                done += len(band)
                self.complete = done == rows
        if not self.complete:
            self.give_up(ValueError(f"{done} of {rows} rows were painted"))

    def _painted(self, report: Callable[[float], None]) -> Generator[np.ndarray, None, None]:
        options = self.options

        def tell(number: int, share: float) -> None:
            try:
                report((number + share) / len(self.frames))
            except Exception as error:
                raise _ListenerError(error) from error

        opened = self._opened
        for number, frame in enumerate(self.frames):
            if number:
                opened = self.upscaler.open(frame, self.engine_bytes, ensemble=options.ensemble)
            with closing(opened.bands(self.task.size, options.box, functools.partial(tell, number))) as bands:
                yield from bands

    def give_up(self, error: Exception | None = None) -> None:
        """Make the writer fail with ``error`` unless it has all it needs. Safe at any time, and more than once."""
        self._failure = self._failure or error or _GivenUpError()

    def _hand_over(self, band: np.ndarray) -> bool:
        while not self._gone.is_set():
            try:
                self._bands.put(band, timeout=LOOK_S)
            except queue.Full:
                continue
            return True
        return False

    def write(self) -> Result:
        """Write what is painted. Its errors are in what it returns, but for a broken pipe."""
        task = self.task
        error: Exception | None = None
        try:
            with _destination(
                task, self.options, lambda path: _deliver(path, lambda: self._failure is not None)
            ) as path:
                if isinstance(task.picture, Animation):
                    self._write_animation(path, task.picture)
                else:
                    self._write_picture(path, task.picture)
        except BrokenPipeError:
            raise
        except MemoryError:
            error = MemoryBudgetError(f"{task.output}: out of memory while writing; close other programs")
        except Exception as caught:
            error = caught
        finally:
            self._gone.set()
        seconds = time.perf_counter() - task.started
        first = self.frames[0]
        return Result(
            task.job.source.path,
            task.output,
            first.size,
            task.size,
            seconds,
            len(self.frames),
            error,
            model=self.model,
        )

    def _write_picture(self, path: Path, picture: Picture) -> None:
        options = self.options
        with open_writer(
            path,
            self.task.size,
            picture,
            format=options.format,
            quality=options.quality,
            strip=options.strip,
            budget_bytes=self.writer_bytes,
            overwrite=options.overwrite or self.task.output == STANDARD,
        ) as writer:
            for band in self._taken(self.task.size[0]):
                writer.write(band)

    def _write_animation(self, path: Path, animation: Animation) -> None:
        options = self.options
        frames = []
        for frame in animation.frames:
            pixels = joined(self._taken(self.task.size[0]), self.task.size[0])
            frames.append(replace(frame, pixels=pixels))
        write_animation(
            path,
            replace(animation, frames=tuple(frames)),
            format=options.format,
            quality=options.quality,
            strip=options.strip,
            overwrite=options.overwrite or self.task.output == STANDARD,
        )

    def _taken(self, rows: int) -> Iterator[np.ndarray]:
        """The bands of so many rows, as they come."""
        while rows > 0:
            try:
                band = self._bands.get(timeout=LOOK_S)
            except queue.Empty:
                if self._failure is not None:
                    raise self._failure from None
                continue
            rows -= len(band)
            yield band


def _make_folder(folder: Path, options: Options) -> None:
    if is_folder(folder) or not job_makes(folder, options):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder cannot be made: {error.strerror}") from None


@contextmanager
def _destination(task: _Task, options: Options, deliver: Callable[[Path], None] = lambda path: None) -> Iterator[Path]:
    """The path to write to; for standard output a temporary one whose content ``deliver`` then takes there."""
    if task.output != STANDARD:
        yield task.output
        return
    with _temporary_folder() as folder:
        path = folder / f"picture.{_standard_format(task.picture, options)}"
        try:
            yield path
        except LiifError as error:
            words = str(error).replace(str(path), "standard output")
            where = f"; it waits to be whole in {folder.parent}, and TMPDIR names another folder"
            raise type(error)(words + where * ("another folder" in words)) from error
        deliver(path)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        place = temporary_place()
        holder = tempfile.TemporaryDirectory(prefix="liif-", dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise cannot_write(place, error) from None
    with holder as folder:
        yield Path(folder)


def _standard_format(picture: Picture | Animation, options: Options) -> str:
    return standard_format(options, picture.format, len(picture.frames) if isinstance(picture, Animation) else 1)


def _fitted(picture: Picture | Animation, job: Job, options: Options) -> Picture | Animation:
    """The picture as it goes into its output's format."""
    output = job.output(options, output_size(_first(picture).size, options))
    assert output is not None
    wanted = _standard_format(picture, options) if output == STANDARD else options.format
    fit = functools.partial(fitted, known=format_of(output, wanted), depth=options.depth, background=options.background)
    if isinstance(picture, Animation):
        return replace(picture, frames=tuple(map(fit, picture.frames)))
    return fit(picture)


def _deliver(path: Path, stopped: Callable[[], bool]) -> None:
    if sys.stdout is None:
        raise OutputError("standard output: is closed")
    try:
        with path.open("rb") as file:
            pipe = _pipe_of(sys.stdout)
            if pipe is None:
                shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            else:
                _pour(file, pipe, stopped)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise cannot_write(Path("standard output"), error) from None


def _pipe_of(stream: Any) -> int | None:
    """The descriptor of a stream that is a pipe, of which it can be known whether it takes anything."""
    try:
        descriptor = int(stream.fileno())
        return descriptor if os.name == "posix" and stat.S_ISFIFO(os.fstat(descriptor).st_mode) else None
    except (OSError, ValueError):
        return None


def _pour(file: BinaryIO, pipe: int, stopped: Callable[[], bool]) -> None:
    """Copy a file into a pipe, but not for longer than somebody waits for it: its reader may never read on."""
    while chunk := file.read(select.PIPE_BUF):  # what a pipe that can be written to takes without waiting
        while not select.select([], [pipe], [], LOOK_S)[1]:
            if stopped():
                raise _GivenUpError
        os.write(pipe, chunk)
