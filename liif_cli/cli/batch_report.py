"""What a batch says: results to standard output, all else to standard error, progress where a person looks on."""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from liif_cli.cli import stopping
from liif_cli.cli.messages import complain, one_line, shown, tell
from liif_cli.errors import LiifError, OutputError
from liif_cli.weights import AUTO

if TYPE_CHECKING:
    from liif_cli.batch import Result
    from liif_cli.jobs import Job, Preview

NARROW = 80  # columns; below, the bar gives way to the words
NAMED_FAILURES = 20


class Report:
    """A listener of a batch. As a context it shows one progress over all pictures, with the time left."""

    def __init__(
        self,
        count: int,
        *,
        model: str,
        as_json: bool,
        quiet: bool,
        verbose: bool,
        picture_to_stdout: bool,
    ) -> None:
        self.count = count
        self.model = model
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.picture_to_stdout = picture_to_stdout
        self.results: list[Result] = []
        self.began = time.monotonic()
        self.console = Console(stderr=True, highlight=False)
        # Not as rich has it, which by FORCE_COLOR draws bars into logs.
        self.is_watched = self.console.is_terminal and sys.stderr.isatty()
        self.progress = Progress(
            *_columns(count, narrow=self.console.width < NARROW),
            console=self.console,
            transient=True,
            disable=quiet or not self.is_watched,
            # Results are for standard output even while a bar is drawn on standard error.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.task = self.progress.add_task("", total=count)

    def __enter__(self) -> Report:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self.progress.disable:  # rich before 14.3 ends a bar that was never shown with an empty line
            self.progress.stop()

    def started(self, job: Job) -> None:
        """See ``batch.Listener``."""
        stopping.check()
        self.progress.update(self.task, description=shown(job.source.path.name))

    def painted(self, job: Job, share: float) -> None:
        """See ``batch.Listener``."""
        stopping.check()
        # What is painted still has to be written: a picture counts as done when it is.
        if share >= 1:
            self.progress.update(self.task, description=f"writing {shown(job.source.path.name)}")
        self._advance(len(self.results) + min(share, 0.99))

    def _advance(self, completed: float) -> None:
        # Never back: a picture begins while the one before it is still written.
        self.progress.update(self.task, completed=min(max(completed, self.progress.tasks[0].completed), self.count))

    def finishing(self, job: Job) -> None:
        """See ``batch.Listener``."""
        if stopping.is_asked():
            name = shown(job.source.path.name)
            self._tell(f"liif: finishing {name}, which is only being written; Ctrl-C again stops at once")

    def finished(self, result: Result) -> None:
        """See ``batch.Listener``."""
        self.results.append(result)
        self._advance(len(self.results))
        if result.error is not None:
            self._complain(result.source, result.error)
        if self.as_json:
            self._say(json.dumps(record(result, self.model)))
        elif result.error is None and not self.quiet and not self.picture_to_stdout:
            self._say(line(result, tell_model=self.model == AUTO))

    def summary(self) -> None:
        """Say how the batch went, where it was one."""
        if self.count > 1 and not self.quiet:
            if self.is_watched:
                self.console.print(summary_table(self.results, self.count, time.monotonic() - self.began))
            else:
                complain(summary_line(self.results, self.count))

    def advise(self) -> None:
        """Say where a model that was named was not asked."""
        made = [result for result in self.results if result.error is None and not result.skipped]
        known = [result for result in made if result.model is None and result.size == result.output_size]
        if self.model != AUTO and made and len(known) == len(made) and not self.quiet:
            complain("nothing was to be enlarged, so the model was not asked; add --direct to have it paint anyway")

    def interrupted(self, *, overwrite: bool) -> None:
        """Say what became of the batch before it was stopped, and how to go on where that does not ``overwrite``."""
        if self.count > 1:
            advice = "" if overwrite else "; run it again with --skip-existing to go on"
            complain(f"{summary_line(self.results, self.count)}{advice}")

    def _say(self, text: str) -> None:
        if self.progress.live.is_started and sys.stdout.isatty():
            self._above(text)
        else:
            print(text, flush=True)

    def _complain(self, source: Path, error: Exception) -> None:
        self._tell(words(source, error))
        # Bugs of ours keep their traceback.
        if self.verbose or not isinstance(error, LiifError):
            tell("".join(traceback.format_exception(error)).rstrip())

    def _tell(self, text: str) -> None:
        if self.progress.live.is_started:
            self._above(text)
        else:
            tell(text)

    def _above(self, text: str) -> None:
        """Print above the bar, as it is: not coloured, not wrapped."""
        self.progress.console.print(Text(text), soft_wrap=True)


def _columns(count: int, *, narrow: bool) -> list[Any]:
    room = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns: list[Any] = [TextColumn("{task.description}", markup=False, table_column=room)]
    if not narrow:
        columns.append(BarColumn(24))
    columns.append(MofNCompleteColumn() if count > 1 else TaskProgressColumn())
    return [*columns, TimeRemainingColumn(), TextColumn("left")]


def _name(source: Path) -> str:
    return "standard input" if str(source) == "-" else shown(source)


def words(source: Path, error: Exception) -> str:
    """One line for an error, which names the input."""
    name = _name(source)
    if isinstance(error, LiifError):
        text = one_line(error, source)
        # An output's name says enough, and comes first in its errors.
        named = isinstance(error, OutputError) or re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
        return f"liif: {text}" if named else f"liif: {name}: {text}"
    return f"liif: {name}: internal error ({type(error).__name__}); please report it with the traceback"


def line(result: Result, *, tell_model: bool = False) -> str:
    """One line for what was written, or was there."""
    if result.skipped:
        return f"{shown(result.output)}  already exists, skipped"
    assert result.size is not None
    assert result.output_size is not None
    (height, width), (out_height, out_width) = result.size, result.output_size
    return (
        f"{shown(result.output)}  {out_width}x{out_height} from {width}x{height}{_frames(result.frames)}"
        f"{f' by {result.model}' if tell_model and result.model else ''} in {result.seconds:.1f} s"
    )


def _frames(count: int) -> str:
    return f", {count} frames" if count > 1 else ""


def preview_line(preview: Preview) -> str:
    """One line for what would be written."""
    if preview.skipped:
        return f"{shown(preview.output)}  already exists, skipped"
    assert preview.size is not None
    assert preview.output_size is not None
    (height, width), (out_height, out_width) = preview.size, preview.output_size
    name = "standard output" if str(preview.output) == "-" else shown(preview.output)
    return f"{name}  {out_width}x{out_height} from {shown(preview.source)} {width}x{height}{_frames(preview.frames)}"


def record(result: Result | Preview, asked: str) -> dict[str, Any]:
    """What --json prints. The model is that which painted, or null where none did; of what was not written now
    (previewed, skipped, failed) it is what was asked for."""

    def as_object(size: tuple[int, int] | None) -> dict[str, int] | None:
        return None if size is None else {"width": size[1], "height": size[0]}

    made = result.output is not None and result.error is None
    seconds = getattr(result, "seconds", None)
    return {
        "input": str(result.source),
        "output": str(result.output) if made else None,
        "input_size": as_object(result.size),
        "output_size": as_object(result.output_size),
        "frames": result.frames,
        "seconds": None if seconds is None else round(seconds, 3),
        "model": getattr(result, "model", asked) if made and not result.skipped else asked,
        "skipped": result.skipped,
        "error": None if result.error is None else words(result.source, result.error).removeprefix("liif: "),
        "exit_code": None if result.error is None else getattr(result.error, "exit_code", 1),
    }


def counts(results: Sequence[Result], count: int) -> Mapping[str, int]:
    """How many pictures came to which end; ends that none came to are left out, but for the good one."""
    failed = sum(result.error is not None for result in results)
    skipped = sum(result.skipped for result in results)
    ends = {
        "written": len(results) - failed - skipped,
        "skipped": skipped,
        "failed": failed,
        "not tried": count - len(results),
    }
    return {end: number for end, number in ends.items() if number or end == "written"}


def summary_line(results: Sequence[Result], count: int) -> str:
    """The summary for logs."""
    parts = ", ".join(f"{number} {end}" for end, number in counts(results, count).items())
    failed = [shown(result.source) for result in results if result.error is not None]
    named = ", ".join(failed[:NAMED_FAILURES]) + (", ..." if len(failed) > NAMED_FAILURES else "")
    return f"{count} pictures: {parts}" + (f" ({named})" if failed else "")


def summary_table(results: Sequence[Result], count: int, seconds: float) -> Table:
    """The summary for terminals: how many came to which end, then every failure by name."""
    minutes, rest = divmod(round(seconds), 60)
    title = f"{count} pictures in {minutes}:{rest:02d} min" if minutes else f"{count} pictures in {seconds:.1f} s"
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    colours = {"written": "green", "failed": "red"}
    for end, number in counts(results, count).items():
        table.add_row(str(number), Text(end, style=colours.get(end, "")))
    for result in [result for result in results if result.error is not None][:NAMED_FAILURES]:
        assert result.error is not None
        table.add_row("", Text(words(result.source, result.error).removeprefix("liif: "), style="dim"))
    return table


def exit_code(results: Sequence[Result | Preview]) -> int:
    """0; or 1: some inputs failed; or the code of the failures where all failed, and in the same way."""
    codes = {getattr(result.error, "exit_code", 1) if result.error is not None else 0 for result in results}
    return codes.pop() if len(codes) == 1 else int(bool(codes))
