"""``liif upscale``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liif_cli.errors import InputError, OutputError, UsageError

if TYPE_CHECKING:
    from liif_cli.batch import Job, Options, Result

SIZE, MODEL, OUTPUT, RUNNING = "Size (give one)", "Model and machine", "Output", "Batches"


def upscale(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Pictures, folders, patterns, or - for standard input.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="File or folder to write to, or - for standard output. [default: beside the input, NAME_x2.7.png]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    scale: Annotated[float | None, typer.Option(metavar="F", help="Factor, such as 2.7.", rich_help_panel=SIZE)] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Exact size in pixels; may change the proportions.", rich_help_panel=SIZE),
    ] = None,
    width: Annotated[int | None, typer.Option(metavar="W", help="Width in pixels.", rich_help_panel=SIZE)] = None,
    height: Annotated[int | None, typer.Option(metavar="H", help="Height in pixels.", rich_help_panel=SIZE)] = None,
    longest: Annotated[
        int | None, typer.Option(metavar="N", help="Longer side in pixels.", rich_help_panel=SIZE)
    ] = None,
    megapixels: Annotated[
        float | None, typer.Option(metavar="F", help="Size in millions of pixels.", rich_help_panel=SIZE)
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            metavar="L,T,R,B",
            help="Paint only this window of the input, in its pixels: left, top, right, bottom.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "-m",
            "--model",
            metavar="NAME|FILE",
            envvar="LIIF_MODEL",
            help="A name from `liif fetch-weights --list`, a checkpoint, or a training run's folder.",
            rich_help_panel=MODEL,
        ),
    ] = "default",
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME", envvar="LIIF_DEVICE", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=MODEL
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            envvar="LIIF_PRECISION",
            help="auto, float32, bfloat16 or float16. auto is half precision where the device is faster in it.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            envvar="LIIF_MEMORY",
            help="Most memory to use, such as 4G. [default: half of what is free, 4G at most]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="EXT", help="png, jpg, webp, tif, avif, dzi, ...", rich_help_panel=OUTPUT),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=100, help="Of formats with loss, 1 to 100.", rich_help_panel=OUTPUT),
    ] = None,
    strip: Annotated[
        bool, typer.Option("--strip", help="Leave EXIF and XMP out; the colour profile stays.", rich_help_panel=OUTPUT)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace outputs that are there already.", rich_help_panel=OUTPUT)
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out inputs whose output is there.", rich_help_panel=OUTPUT)
    ] = False,
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Look in folders within folders.", rich_help_panel=RUNNING)
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first picture that fails.", rich_help_panel=RUNNING)
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Refuse inputs with more pixels than this.", rich_help_panel=RUNNING),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a picture.", rich_help_panel=RUNNING)
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.", rich_help_panel=RUNNING)] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Say more, and show errors' tracebacks.", rich_help_panel=RUNNING)
    ] = False,
) -> int:
    """Make pictures larger: to any size, sharper than interpolation.

    [bold]liif upscale photo.jpg --scale 2.7[/bold] writes photo_x2.7.png beside it.
    """
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing contradict each other; give one")
    sizes = {"scale": scale, "size": _parse_size(size), "width": width, "height": height, "longest": longest}
    window = _parse_box(box)

    from liif_cli import batch
    from liif_cli.upscaler import Sizing, load

    sizing = Sizing(**sizes, megapixels=megapixels)  # type: ignore[arg-type]
    sizing.resolve((1, 1))  # a wrong size is said before anything else is done
    options = batch.Options(
        sizing=sizing,
        box=window,
        output=None if output is None else _output_path(output),
        format=format,
        quality=quality,
        overwrite=overwrite,
        skip_existing=skip_existing,
        strip=strip,
        max_pixels=max_pixels,
    )
    sources = batch.find_sources(inputs, recursive=recursive)
    jobs = batch.plan_jobs(sources, options)
    if not jobs:
        raise InputError("nothing to do: every input is itself an output of this command")
    upscaler = load(model, device=device, precision=precision, memory=memory)
    report = _Report(len(jobs), options, as_json=as_json, quiet=quiet, verbose=verbose, model=model)
    with report:
        results = batch.run(jobs, upscaler, options, report, fail_fast=fail_fast, limit_process=memory is not None)
    report.summary(results, len(jobs))
    return _exit_code(results)


def _output_path(text: str) -> Path:
    # A trailing slash says "folder", and a path would forget it.
    path = Path(text)
    if text.endswith(("/", "\\")):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path}: the folder cannot be made: {error.strerror}") from None
    return path


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, cross, height = text.lower().replace("×", "x").partition("x")
    if not cross or not width.isascii() or not (width.isdigit() and height.isdigit()):
        raise UsageError(f"--size {text!r}: write it as width x height in pixels, such as 1920x1080")
    return int(height), int(width)


def _parse_box(text: str | None) -> Any:
    if text is None:
        return None
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--box {text!r}: write it as left,top,right,bottom in pixels, such as 100,50,400,250"
        ) from None
    from liif_cli.engine import Box

    return Box(top, left, bottom, right)


def _exit_code(results: Sequence[Result]) -> int:
    """0, or the failures' own code where nothing else happened, or 1: some inputs failed."""
    codes = {result.error.exit_code for result in results if result.error is not None}
    if not codes:
        return 0
    all_failed = all(result.error is not None for result in results)
    return codes.pop() if all_failed and len(codes) == 1 else 1


class _Report:
    """Results to standard output; everything else to standard error, progress only where a person looks on."""

    def __init__(self, count: int, options: Options, *, as_json: bool, quiet: bool, verbose: bool, model: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.count = count
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.model = model
        self.to_stdout = options.output is not None and str(options.output) == "-"
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.task = self.progress.add_task("", total=count)
        self.done = 0

    def __enter__(self) -> None:
        self.progress.start()

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def started(self, job: Job) -> None:
        self.progress.update(self.task, description=job.source.path.name)

    def painted(self, job: Job, share: float) -> None:
        # What is painted still has to be written: a job counts as done when it is.
        self.progress.update(self.task, completed=max(self.done, min(self.done + share, self.count)))

    def finished(self, result: Result) -> None:
        self.done += 1
        self.progress.update(self.task, completed=self.done)
        if self.as_json and not self.to_stdout:
            print(json.dumps(self._record(result)), flush=True)
        if result.error is not None:
            print(f"liif: {result.error}", file=sys.stderr, flush=True)
            if self.verbose:
                import traceback

                traceback.print_exception(result.error)
        elif not self.as_json and not self.quiet and not self.to_stdout:
            print(_line(result), flush=True)

    def _record(self, result: Result) -> dict[str, Any]:
        def as_list(size: tuple[int, int] | None) -> dict[str, int] | None:
            return None if size is None else {"width": size[1], "height": size[0]}

        return {
            "input": str(result.source),
            "output": None if result.output is None or result.error is not None else str(result.output),
            "input_size": as_list(result.size),
            "output_size": as_list(result.output_size),
            "seconds": round(result.seconds, 3),
            "model": self.model,
            "skipped": result.skipped,
            "error": None if result.error is None else str(result.error),
        }

    def summary(self, results: Sequence[Result], jobs: int) -> None:
        if jobs == 1 or self.quiet:
            return
        failed = [result for result in results if result.error is not None]
        skipped = sum(result.skipped for result in results)
        written = len(results) - len(failed) - skipped
        parts = [f"{written} written"]
        if skipped:
            parts.append(f"{skipped} there already")
        if failed:
            parts.append(f"{len(failed)} failed: " + ", ".join(str(result.source) for result in failed[:10]))
        if jobs > len(results):
            parts.append(f"{jobs - len(results)} not tried")
        print(f"liif: {jobs} pictures, " + ", ".join(parts), file=sys.stderr)


def _line(result: Result) -> str:
    if result.skipped:
        return f"{result.output}  there already"
    assert result.size is not None
    assert result.output_size is not None
    (height, width), (out_height, out_width) = result.size, result.output_size
    return f"{result.output}  {out_width}x{out_height} from {width}x{height} in {result.seconds:.1f} s"
