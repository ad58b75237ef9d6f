"""Many pictures, one after another: what is read, what it becomes, and what happens when one of them fails.

While a picture is painted the next one is read and the one before is compressed and written.
"""

from __future__ import annotations

import functools
import glob
import queue
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from liif_cli.engine import Box, Size
from liif_cli.errors import InputError, LiifError, OutputError, UsageError
from liif_cli.images import EXTENSIONS, Picture, check_output, format_of, open_writer, read
from liif_cli.upscaler import Sizing, Upscaler, box_size, free_bytes, within_process

STANDARD = Path("-")  # standard input or output
# Of what a picture may take: for the writer's buffers, or the whole output where it is written from memory.
WRITER_SHARE = 0.4
QUEUED_BANDS = 2


class Source(NamedTuple):
    """An input and where it stood below the folder that was named, if one was."""

    path: Path
    below: Path = Path()


class Options(NamedTuple):
    """What shall become of each picture."""

    sizing: Sizing
    box: Box | None = None
    output: Path | None = None  # a file, a folder, "-", or None: beside the input
    format: str | None = None  # an extension; None: PNG, or what ``output`` says
    quality: int | None = None
    overwrite: bool = False
    skip_existing: bool = False
    strip: bool = False
    max_pixels: int | None = None  # None: the reader's own limit


class Job(NamedTuple):
    source: Source
    folder: Path
    stem: str
    extension: str
    exact: Path | None  # the output's whole name where the user gave it

    def output(self, options: Options, size: Size | None) -> Path | None:
        """The file it becomes; None where the name tells pixels and these are not known yet."""
        if self.exact is not None:
            return self.exact
        label = options.sizing.label
        if label is None:
            if size is None:
                return None
            label = f"{size[1]}x{size[0]}"
        return self.folder / f"{self.stem}_{label}{self.extension}"


class Result(NamedTuple):
    """What became of a job. ``error`` is None where the output was written or, with ``skipped``, was there already."""

    source: Path
    output: Path | None
    size: Size | None
    output_size: Size | None
    seconds: float
    error: LiifError | None = None
    skipped: bool = False


def find_sources(inputs: Sequence[str], *, recursive: bool) -> list[Source]:
    """Files, folders, globs and ``-`` to a list of inputs, in order, none twice. Files that are missing stay in the
    list, to be reported when their turn comes.

    Raises InputError for a folder or a pattern without pictures.
    """
    found: dict[Path, Source] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            below = sorted(path.rglob("*") if recursive else path.iterdir())
            pictures = [Source(item, item.parent.relative_to(path)) for item in below if _is_picture_name(item)]
            if not pictures:
                hint = "" if recursive else "; add -r to look in its folders too"
                raise InputError(f"{path}: no pictures in this folder{hint}")
        elif not path.exists() and glob.has_magic(text):
            matches = sorted(Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207 - patterns may be absolute
            pictures = [Source(item) for item in matches if _is_picture_name(item)]
            if not pictures:
                raise InputError(f"{text}: no picture matches this pattern")
        else:
            pictures = [Source(path)]
        for source in pictures:
            found.setdefault(source.path, source)
    return list(found.values())


def _is_picture_name(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


def plan_jobs(sources: Sequence[Source], options: Options) -> list[Job]:
    """Name every output before any work is done.

    Inputs that are themselves the outputs of others in the list (an earlier run's, in the same folder) are left out.

    Raises UsageError for outputs that cannot be told apart or formats that cannot be written.
    """
    output = options.output
    if output == STANDARD and len(sources) > 1:
        raise UsageError(f"-o -: standard output takes one picture, and there are {len(sources)}; name a folder")
    extension = f".{options.format.lstrip('.').lower()}" if options.format else ".png"
    to_file = output is not None and output != STANDARD and not _is_folder(output, sources)
    if to_file and len(sources) > 1:
        raise UsageError(f"-o {output}: {len(sources)} pictures do not go into one file; name a folder")
    if output is not None and not to_file and output != STANDARD:
        _check_folder(output)
    if to_file:
        assert output is not None
        format_of(output, options.format)
    else:
        format_of(Path("picture" + extension), None)
    jobs = []
    for source in sources:
        stem = "stdin" if source.path == STANDARD else source.path.stem
        exact = output if to_file or output == STANDARD else None
        if source.path == STANDARD and output is None:
            exact = STANDARD
        folder = source.path.parent if output is None else output / source.below
        jobs.append(Job(source, folder, stem, extension, exact))
    jobs = _without_outputs(jobs, options)
    _refuse_collisions(jobs)
    return jobs


def _is_folder(output: Path, sources: Sequence[Source]) -> bool:
    """Whether ``-o`` names a folder: one that is there, a name without an ending, or where a tree is to be kept."""
    from_tree = any(source.below != Path() for source in sources)
    return output.is_dir() or from_tree or (not output.is_file() and not output.suffix)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder}: is a file, and a folder is needed here")


def _without_outputs(jobs: list[Job], options: Options) -> list[Job]:
    label = re.escape(options.sizing.label) if options.sizing.label else r"\d+x\d+"
    made = {(job.folder, job.stem, job.extension) for job in jobs if job.exact is None}

    def is_output(job: Job) -> bool:
        path = job.source.path
        match = re.fullmatch(rf"(.+)_{label}", path.stem)
        return match is not None and (path.parent, match[1], path.suffix.lower()) in made

    return [job for job in jobs if not is_output(job)]


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    taken: dict[tuple[Path, str, str], Job] = {}
    for job in jobs:
        # Names that differ in case only are one file on many systems.
        key = (job.folder, job.stem.casefold(), job.extension)
        other = taken.setdefault(key, job)
        if other is not job:
            raise UsageError(
                f"{other.source.path} and {job.source.path} would both be written as {job.stem}_...{job.extension}"
                f" in {job.folder}; rename one, or upscale them into different folders"
            )


class Listener(Protocol):
    """Told of what happens."""

    def started(self, job: Job) -> None:
        """A picture's turn has come."""

    def painted(self, job: Job, share: float) -> None:
        """So much of it, in [0, 1], is painted."""

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
    """Do all jobs. A LiifError of one is its result, and the others go on (``fail_fast`` ends with the first).

    ``limit_process``: the upscaler's memory is meant for all of this process, not for the picture alone.
    """
    results: list[Result] = []
    written: deque[Future[Result]] = deque()  # what the writer has before it; at most the last two

    def collect(leave: int) -> bool:
        while len(written) > leave:
            result = written.popleft().result()
            results.append(result)
            listener.finished(result)
            if result.error is not None and fail_fast:
                return False
        return True

    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        upcoming = reader.submit(_read, jobs[0], options) if jobs else None
        for number, job in enumerate(jobs):
            assert upcoming is not None
            listener.started(job)
            picture = upcoming.result()
            upcoming = reader.submit(_read, jobs[number + 1], options) if number + 1 < len(jobs) else None
            started = time.perf_counter()
            try:
                painting = _prepare(job, picture, upscaler, options, limit_process)
            except LiifError as error:
                painting = Result(job.source.path, None, None, None, time.perf_counter() - started, error)
            if isinstance(painting, Result):
                written.append(writer.submit(_as_is, painting))
            else:
                try:
                    written.append(writer.submit(painting.write))
                    painting.paint(functools.partial(listener.painted, job))
                except BaseException as error:
                    painting.give_up(error)
                    raise
            if not collect(leave=1):
                break
        collect(leave=0)
    return results


def _prepare(
    job: Job, picture: Picture | LiifError | None, upscaler: Upscaler, options: Options, limit_process: bool
) -> _Painting | Result:
    if isinstance(picture, LiifError):
        raise picture
    if picture is None:
        return Result(job.source.path, job.output(options, None), None, None, 0.0, skipped=True)
    size = options.sizing.resolve(box_size(picture.size, options.box))
    output = job.output(options, size)
    assert output is not None
    if options.skip_existing and output != STANDARD and output.exists():
        return Result(job.source.path, output, picture.size, size, 0.0, skipped=True)
    return _Painting(_Task(job, picture, size, output, time.perf_counter()), upscaler, options, limit_process)


def _as_is(result: Result) -> Result:
    return result


class _Task(NamedTuple):
    job: Job
    picture: Picture
    size: Size
    output: Path
    started: float


class _Painting:
    """One picture on its way through: bands are painted by the caller of :meth:`paint` and written by that of
    :meth:`write`, at the same time."""

    def __init__(self, task: _Task, upscaler: Upscaler, options: Options, limit_process: bool) -> None:
        self.task = task
        self.options = options
        total = upscaler.working_bytes()
        on_host = upscaler.device.type == "cpu"
        if limit_process and on_host:
            total = within_process(total)
        self.writer_bytes = (
            int(total * WRITER_SHARE) if on_host else int(free_bytes(torch.device("cpu")) * WRITER_SHARE)
        )
        engine_bytes = total - self.writer_bytes if on_host else total
        if task.output != STANDARD:
            _make_folder(task.output.parent, options)
            self._check(task.output)
        self.opened = upscaler.open(task.picture, engine_bytes)
        self.bands: queue.Queue[np.ndarray | BaseException | None] = queue.Queue(QUEUED_BANDS)
        self.gone = threading.Event()  # the writer has given up: nobody takes bands any more

    def _check(self, path: Path) -> None:
        options, task = self.options, self.task
        check_output(
            path,
            task.size,
            task.picture,
            format=options.format,
            strip=options.strip,
            budget_bytes=self.writer_bytes,
            overwrite=options.overwrite,
        )

    def paint(self, report: Callable[[float], None]) -> None:
        done = 0
        try:
            with closing(self.opened.bands(self.task.size, self.options.box)) as bands:
                for band in bands:
                    if not self._hand_over(band):
                        return
                    done += len(band)
                    report(done / self.task.size[0])
        except LiifError as error:
            self.give_up(error)
        else:
            self._hand_over(None)

    def give_up(self, error: BaseException) -> None:
        """Make the writer fail with ``error``, within its own block, so that nothing is left behind."""
        self._hand_over(error)

    def _hand_over(self, item: np.ndarray | BaseException | None) -> bool:
        while not self.gone.is_set():
            try:
                self.bands.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def write(self) -> Result:
        task = self.task
        error: LiifError | None = None
        try:
            with (
                _destination(task.output, self.options) as path,
                open_writer(
                    path,
                    task.size,
                    task.picture,
                    format=self.options.format,
                    quality=self.options.quality,
                    strip=self.options.strip,
                    budget_bytes=self.writer_bytes,
                    overwrite=self.options.overwrite or task.output == STANDARD,
                ) as writer,
            ):
                for band in self._taken():
                    writer.write(band)
        except LiifError as caught:
            error = caught
        finally:
            self.gone.set()
        seconds = time.perf_counter() - task.started
        return Result(task.job.source.path, task.output, task.picture.size, task.size, seconds, error)

    def _taken(self) -> Iterator[np.ndarray]:
        while (item := self.bands.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


def _read(job: Job, options: Options) -> Picture | LiifError | None:
    """The picture; None where its output is there already. An error is a value here: it belongs to its job's turn."""
    output = job.output(options, None)
    if options.skip_existing and output is not None and output != STANDARD and output.exists():
        return None
    limits = {} if options.max_pixels is None else {"max_pixels": options.max_pixels}
    try:
        return read(sys.stdin.buffer.read() if job.source.path == STANDARD else job.source.path, **limits)
    except LiifError as error:
        return error


def _make_folder(folder: Path, options: Options) -> None:
    if folder.is_dir() or options.output is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder cannot be made: {error.strerror}") from None


@contextmanager
def _destination(output: Path, options: Options) -> Iterator[Path]:
    """The path to write to; for standard output a temporary one whose content then goes there."""
    if output != STANDARD:
        yield output
        return
    extension = options.format.lstrip(".") if options.format else "png"
    with tempfile.TemporaryDirectory(prefix="liif-") as folder:
        path = Path(folder) / f"picture.{extension}"
        yield path
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
