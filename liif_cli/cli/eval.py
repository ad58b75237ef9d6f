"""``liif eval``."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liif_cli.cli.machine import PANEL, DeviceOption, MemoryOption, flag
from liif_cli.cli.messages import complain, shown
from liif_cli.errors import InputError, LiifError, OutputError, UsageError
from liif_cli.files import is_folder, with_home

if TYPE_CHECKING:
    from liif_cli.benchmarks import Dataset, Truth
    from liif_cli.evaluate import Keeper, Painted, Score

STANDARD = Path("-")  # standard output
WHAT, HOW, OUTPUT = "What is scored", "Protocol", "Output"


def evaluate(
    dataset: Annotated[
        list[str],
        typer.Option(
            "--dataset",
            metavar="NAME|FOLDER",
            help="set5, set14, b100, urban100, div2k, or any folder of pictures; several with commas.",
            rich_help_panel=WHAT,
        ),
    ],
    scales: Annotated[
        str, typer.Option(metavar="F,F,...", help="Factors, such as 2,3,4,6.5,30.", rich_help_panel=WHAT)
    ] = "2,3,4",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            metavar="NAME|FILE",
            help="A name from `liif fetch-weights --list`, a checkpoint, a training run's folder, or none;"
            " may be repeated. \\[default: default]",
            show_default=False,
            rich_help_panel=WHAT,
        ),
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="Of nearest, bicubic, lanczos; or none.", rich_help_panel=WHAT),
    ] = "bicubic",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="LIIF_DATA",
            help="Where the known data sets are: DIR/Set5, DIR/benchmark/Set5, DIR/DIV2K_valid_HR.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    fetch: Annotated[
        bool,
        flag("--fetch", help="Download missing known data sets into the cache.", rich_help_panel=WHAT),
    ] = False,
    color: Annotated[
        str,
        typer.Option(
            "--color",
            "--colour",
            metavar="y|rgb|auto",
            help="What is compared. auto: luma (y), and RGB on DIV2K.",
            rich_help_panel=HOW,
        ),
    ] = "auto",
    border: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Pixels shaved off each side. \\[default: the scale, and scale + 6 on DIV2K]",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    rounding: Annotated[
        str,
        typer.Option(
            metavar="paper|none|8bit",
            help="paper: outputs of models are not rounded, baselines are scored on 8-bit luma as in published tables."
            " none: nothing is rounded. 8bit: everything is, as in a saved file.",
            rich_help_panel=HOW,
        ),
    ] = "paper",
    degradation: Annotated[
        str,
        typer.Option(
            metavar="paper|matlab|pil|torch",
            help="What makes the input. paper: the set's own files or MATLAB's bicubic at x2, x3 and x4, PIL's at other"
            " scales.",
            rich_help_panel=HOW,
        ),
    ] = "paper",
    jpeg: Annotated[
        int | None,
        typer.Option(
            metavar="1-100",
            min=1,
            max=100,
            help="Save each input as JPEG of this quality first, as photographs mostly come.",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    lpips: Annotated[
        bool,
        flag("--lpips", help="Score LPIPS too; needs pip install lpips.", rich_help_panel=HOW),
    ] = False,
    published: Annotated[
        bool, flag("--published", help="Show published scores alongside.", rich_help_panel=OUTPUT)
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write means and scores as JSON; - for standard output.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option(
            "--csv", metavar="FILE", help="Write one line per picture; - for standard output.", rich_help_panel=OUTPUT
        ),
    ] = None,
    markdown: Annotated[bool, flag("--markdown", help="Print the tables as Markdown.", rich_help_panel=OUTPUT)] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write DIR/index.html: tables, curves, and pictures to compare.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    save_images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save every enlargement: DIR/SET/x2/METHOD/NAME.png.", rich_help_panel=OUTPUT),
    ] = None,
    resume: Annotated[
        bool,
        flag("--resume", help="Reuse the scores of an earlier run.", rich_help_panel=OUTPUT),
    ] = False,
    device: DeviceOption = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            envvar="LIIF_PRECISION",
            help="float32, bfloat16, float16, or auto, which is what liif upscale uses.",
            rich_help_panel=PANEL,
        ),
    ] = "float32",
    ensemble: Annotated[
        bool,
        flag(
            "--ensemble",
            help="Score each model a second time as the mean of its eight views, NAME+, as liif upscale --direct"
            " --ensemble paints.",
            rich_help_panel=PANEL,
        ),
    ] = False,
    memory: MemoryOption = None,
    quiet: Annotated[
        bool, flag("-q", "--quiet", help="Print errors only, and what is asked for.", rich_help_panel=PANEL)
    ] = False,
    verbose: Annotated[
        bool, flag("-v", "--verbose", help="Print every picture's score.", rich_help_panel=PANEL)
    ] = False,
) -> None:
    """Score models on benchmark pictures, by the published protocol.

    PSNR and SSIM of every model and baseline at every scale, with the time and
    the memory it took. At x2, x3 and x4 the inputs are the data set's own
    low-resolution files, or MATLAB's bicubic where there are none; at other
    scales they are made the way the papers do.

    [bold]The paper's table for liif-light:[/bold]
      liif eval --dataset set5,set14 --scales 2,3,4,6,8 --data DIR --published

    [bold]Two models on your own photographs, to look at:[/bold]
      liif eval --dataset photos/ --scales 2.5,4 -m default -m run/ --report out
    """
    from liif_cli.benchmarks.datasets import LEAST_SIDE
    from liif_cli.evaluate import Work, load_methods, parse_scales, summarise
    from liif_cli.evaluate import evaluate as scores_of
    from liif_cli.protocol import Protocol
    from liif_cli.published import published as in_print
    from liif_cli.scorebook import Scorebook
    from liif_cli.weights import cache_folder

    factors = parse_scales(scales)
    protocol = Protocol(color, border, rounding, degradation, jpeg)
    files = [path for path in (json_file, csv_file) if path is not None and path != STANDARD]
    to_stdout = [json_file, csv_file].count(STANDARD)
    if to_stdout + markdown > 1:
        raise UsageError("--json -, --csv - and --markdown exclude each other: there is one standard output")
    if len(set(files)) < len(files):
        raise UsageError(f"--json {json_file} --csv {csv_file}: are one file; name two")
    if save_images is not None:
        _check_apart(save_images, _parts(dataset))
    _check_outputs(files, [folder for folder in (report, save_images) if folder is not None])
    if report is not None:
        _check_page(report / "index.html")
    sets = _find(_parts(dataset), data, fetch, quiet)
    kernels = [name for name in _parts([baselines]) if name != "none"]
    methods = load_methods(
        model or ["default"], kernels, device=device, precision=precision, memory=memory, ensemble=ensemble
    )
    work = Work(methods, sets, factors, protocol)
    perceptual = None
    if lpips:
        from liif_cli.perceptual import Lpips

        perceptual = Lpips()
    work.check(LEAST_SIDE if perceptual is None else perceptual.LEAST_SIDE)
    book = Scorebook(cache_folder() / "eval" / "scores.jsonl")
    known = book.read() if resume else {}
    scores: list[Score] = []
    left_out: dict[Path, str] = {}  # and why
    keepers: list[Keeper] = [] if save_images is None else [_Saver(save_images)]
    if report is not None:
        from liif_cli.report import Details, write_report

        details = Details(work)
        keepers.append(details)
    with _progress(work.count, quiet=quiet) as progress, book:

        def leave_out(truth: Truth, why: InputError) -> None:
            left_out[truth.path] = str(why)
            progress.note(f"left out: {why}")

        stream = scores_of(
            work,
            known=known,
            perceptual=perceptual,
            started=progress.started,
            left_out=leave_out,
            keepers=keepers,
        )
        try:
            for key, score in stream:
                scores.append(score)
                if key not in known:
                    book.add(key, score)
                progress.scored(score, verbose=verbose)
        except (KeyboardInterrupt, LiifError):
            if book.is_kept and scores:
                anew = ", but paints all pictures again for --save-images" if save_images is not None else ""
                progress.note(
                    f"{len(scores)} of {work.count} scores are kept; the same command with --resume goes on{anew}"
                )
            raise
        finally:
            stream.close()
        if not scores:
            raise _unread(left_out)
        rows = summarise(scores)
        if same := {score.image: None for score in scores if math.isinf(score.psnr)}:
            progress.note(
                f"the same as the truth, so that means are infinite: {', '.join(same)}; leave flat pictures out"
            )
        printed = {each.title: in_print(each.title) for each in sets if protocol.is_published and each.is_benchmark}
    from liif_cli import tables

    shown = printed if published else {}
    if json_file is not None:
        content = tables.as_json(rows, scores, work, shown, left_out)
        _write(json_file, json.dumps(content, indent=1, allow_nan=False) + "\n")
    if csv_file is not None:
        _write(csv_file, tables.as_csv(scores))
    if markdown:
        typer.echo(tables.as_markdown(tables.sheets(rows, work, shown, psnr_only=True)), nl=False)
    elif not quiet and not to_stdout:
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(highlight=False, width=160)  # a pipe has no edge to wrap at
        tables.show(console, tables.sheets(rows, work, shown))
    if published and not protocol.is_published:
        progress.note("scores in print are left out: this is not the protocol they were made by")
    if report is not None:
        page = write_report(report, rows, scores, details, printed)
        progress.note(f"report: {page}")
    if left_out:
        raise _unread(left_out)


def _unread(left_out: Mapping[Path, str]) -> InputError:
    first, *others = left_out.values()
    more = f", and {len(others)} more are left out" if others else ""
    return InputError(f"{first}{more}; means are over the others")


def _parts(texts: Sequence[str]) -> list[str]:
    parts = []
    for text in texts:
        # A folder may have a comma in its name.
        parts += [text] if is_folder(Path(text)) else [part.strip() for part in text.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


def _find(names: Sequence[str], data: Path | None, fetch: bool, quiet: bool) -> list[Dataset]:
    from liif_cli.benchmarks import find
    from liif_cli.benchmarks.fetch import data_folder, fetch_missing

    if not names:
        raise UsageError("--dataset: name a data set or a folder")
    folders = [with_home(data)] if data is not None else []
    if fetch:
        with _progress(0, quiet=quiet) as progress:
            fetch_missing(names, folders, progress)
    sets = [find(name, [*folders, data_folder()]) for name in names]
    if not quiet:
        for each in sets:
            if each.passed_over:
                complain(
                    f"{each.title}: {', '.join(map(shown, each.passed_over))}: passed over, by its name no original"
                )
    titles = [each.title for each in sets]
    if twice := [title for title in titles if titles.count(title) > 1]:
        raise UsageError(f"two data sets are called {twice[0]!r}; give their folders different names, or name it once")
    return sets


def _check_outputs(files: Sequence[Path], folders: Sequence[Path]) -> None:
    """Say what cannot be written before any work is done."""
    from liif_cli.files import cannot_write, check_target

    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{folder}: no permission to write in this folder; name another one")
    for path in files:  # which may lie in one of them
        check_target(path, overwrite=True)


def _check_page(path: Path) -> None:
    """Another program's page is not replaced."""
    from liif_cli.report import MADE_BY

    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name another one for the report")
    if path.exists() and MADE_BY not in path.read_text(encoding="utf-8", errors="replace"):
        raise OutputError(f"{path}: exists, and is no report of liif's; name another folder")


def _check_apart(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if is_folder(Path(name)) and folder.resolve().is_relative_to(Path(name).resolve()):
            raise UsageError(
                f"--save-images {folder}: lies in {name}, where the next evaluation would take its pictures for"
                " originals; name a folder outside of it"
            )


def _write(path: Path, text: str) -> None:
    from liif_cli.files import atomic_path

    if path == STANDARD:
        typer.echo(text, nl=False)
        return
    with atomic_path(path, overwrite=True) as temporary:
        # Names that are no text keep their bytes.
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


class _Saver:
    """Keeps every enlargement as a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def wants(self, dataset: Dataset, truth: Truth) -> bool:
        return True

    def take(self, painted: Painted, image: Any) -> None:
        import numpy as np

        from liif_cli.files import cannot_write
        from liif_cli.images import Picture, write

        name = painted.truth.name if painted.truth.name.endswith(".png") else f"{painted.truth.name}.png"
        path = self.folder / painted.dataset.title / f"x{painted.scale:g}" / painted.method.name / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        pixels = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
        write(path, pixels, Picture(pixels), overwrite=True)


class _Progress:
    """A bar where a person looks on; notes as lines on standard error."""

    def __init__(self, count: int, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.count = count
        self.task = self.bar.add_task("", total=count or None)

    def started(self, text: str) -> None:
        self.bar.update(self.task, description=text)

    def scored(self, score: Score, *, verbose: bool) -> None:
        self.bar.advance(self.task)
        if verbose:
            self.note(
                f"{score.dataset} x{score.scale:g} {score.image}: {score.method}"
                f" {score.psnr:.3f} dB, SSIM {score.ssim:.4f}, {score.seconds:.2f} s"
            )

    def note(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """How far a download has come."""
        self.bar.update(self.task, completed=done_bytes, total=total_bytes, description="bytes")


@contextmanager
def _progress(count: int, *, quiet: bool) -> Iterator[_Progress]:
    progress = _Progress(count, quiet=quiet)
    # rich before 14.3 ends a bar that was never shown with an empty line.
    with nullcontext() if progress.bar.disable else progress.bar:
        yield progress
    sys.stdout.flush()
