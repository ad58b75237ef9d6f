"""``liif upscale``."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liif_cli.cli.machine import PANEL, DeviceOption, MemoryOption, flag
from liif_cli.cli.messages import complain, shown, tell
from liif_cli.errors import InputError, UsageError
from liif_cli.weights import AUTO

if TYPE_CHECKING:
    from liif_cli.jobs import Job, Options, Preview

SIZE, OUTPUT, RUNNING = "Size (give one, with or without --box)", "Output", "Batches"

EXAMPLES = """[bold]Size[/bold]
liif upscale photo.jpg --scale 2.7
liif upscale photo.jpg --longest 4000
liif upscale photo.jpg --box 100,50,164,86 --size 1920x1080

[bold]Output[/bold]
liif upscale photo.jpg --scale 4 -o big.tif
liif upscale photo.png --scale 2 --format webp --quality 90
curl -s URL | liif upscale - --scale 2 > big.png

[bold]Batches[/bold]
liif upscale holiday -r --scale 2 -o enlarged --skip-existing
liif upscale 'scans/*.tif' --width 3000 --dry-run
find . -name '*.jpg' -print0 | liif upscale --files-from - --scale 2 --json

[bold]Exit codes[/bold]
0 all done, 1 some inputs failed, 2 wrong usage, 3 model, 4 out of memory, 5 cannot write, 130 interrupted
"""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number.") from None


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,12}", text.strip()):
        raise typer.BadParameter(f"{text!r} is not a whole number.")
    return int(text)


def _percent(text: str) -> int:
    if not 1 <= _whole(text) <= 100:
        raise typer.BadParameter(f"{text!r} is not from 1 to 100.")
    return int(text)


def _count(text: str) -> int:
    if _whole(text) < 1:
        raise typer.BadParameter(f"{text!r} is not above 0.")
    return int(text)


def _depth(text: str) -> int:
    if text.strip() not in ("8", "16"):
        raise typer.BadParameter(f"{text!r} is neither 8 nor 16.")
    return int(text)


def upscale(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT", help="Pictures, folders, patterns, or - for standard input.", show_default=False
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(parser=_number, metavar="F", help="Factor, such as 2.7.", rich_help_panel=SIZE),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Exact size in pixels; may change the proportions.", rich_help_panel=SIZE),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            parser=_whole,
            metavar="W",
            help="Width in pixels, proportions kept; wider pictures are reduced to it.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(parser=_whole, metavar="H", help="Height in pixels, proportions kept.", rich_help_panel=SIZE),
    ] = None,
    longest: Annotated[
        int | None,
        typer.Option(parser=_whole, metavar="N", help="Longer side in pixels, proportions kept.", rich_help_panel=SIZE),
    ] = None,
    megapixels: Annotated[
        float | None,
        typer.Option(
            parser=_number, metavar="F", help="Millions of pixels in all, proportions kept.", rich_help_panel=SIZE
        ),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            metavar="L,T,R,B",
            help="Paint only this window of the input, in its pixels: left, top, right, bottom.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="File to write, folder to write into (made if need be), or - for standard output."
            " \\[default: beside the input, as NAME_x2.7.png]",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="EXT",
            help="png, jpg, webp, tif, avif, gif, bmp or dzi. \\[default: by -o, else png; animations keep theirs]",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(
            parser=_percent,
            metavar="N",
            help="Quality of lossy formats, 1 to 100. \\[default: jpg 95, webp 90, avif 85, dzi 90]",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            parser=_depth,
            metavar="8|16",
            help="Bits per channel of the output. \\[default: as the input]",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(
            metavar="COLOR",
            help="Put transparent pictures on this colour, such as white or #fafafa; else they stay transparent.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    strip: Annotated[
        bool,
        flag("--strip", help="Leave EXIF, XMP, IPTC and texts out; the colour profile stays.", rich_help_panel=OUTPUT),
    ] = False,
    overwrite: Annotated[
        bool,
        flag(
            "--overwrite",
            help="Replace existing outputs. Without this or --skip-existing, an existing output is an error.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    skip_existing: Annotated[
        bool,
        flag("--skip-existing", help="Skip inputs whose output already exists.", rich_help_panel=OUTPUT),
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            "-m",
            "--model",
            metavar="NAME|FILE",
            envvar="LIIF_MODEL",
            help="A name from liif fetch-weights --list, a checkpoint, or a training run's folder. auto chooses for"
            " each picture: liif-jpeg for lossy WebP, AVIF, JPEG of a quality below 95, and drawings in any lossy file;"
            " liif-drawn for other screenshots and the like; liif-light for the rest.",
            rich_help_panel=PANEL,
        ),
    ] = AUTO,
    device: DeviceOption = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            envvar="LIIF_PRECISION",
            help="auto, float32, bfloat16 or float16. auto is half precision where the device is faster in it, and"
            " float32 for pictures of 16 bits.",
            rich_help_panel=PANEL,
        ),
    ] = "auto",
    memory: MemoryOption = None,
    direct: Annotated[
        bool,
        flag(
            "--direct",
            help="Compute every pixel with the network, at scale 1 and at any above. By default the network enlarges by"
            " x4 at most and bicubic interpolation does the rest, which is faster and no less accurate.",
            rich_help_panel=PANEL,
        ),
    ] = False,
    ensemble: Annotated[
        bool,
        flag(
            "--ensemble",
            help="Average eight views, turned and mirrored: slightly better, eight times slower.",
            rich_help_panel=PANEL,
        ),
    ] = False,
    recursive: Annotated[
        bool,
        flag("-r", "--recursive", help="Look in folders within folders; -o keeps the tree.", rich_help_panel=RUNNING),
    ] = False,
    files_from: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Read more inputs from FILE, one per line or separated by zero bytes; - is standard input.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        flag(
            "--dry-run",
            help="Say what would be written, and write nothing; the model and the memory are not looked at.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    fail_fast: Annotated[
        bool, flag("--fail-fast", help="Stop at the first picture that fails.", rich_help_panel=RUNNING)
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            parser=_count,
            metavar="N",
            help="Refuse inputs with more pixels than this. \\[default: 268435456, 16384 x 16384]",
            rich_help_panel=RUNNING,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, flag("--json", help="Print one JSON object per picture.", rich_help_panel=RUNNING)
    ] = False,
    quiet: Annotated[bool, flag("-q", "--quiet", help="Print errors only.", rich_help_panel=RUNNING)] = False,
    verbose: Annotated[
        bool,
        flag("-v", "--verbose", help="Say what runs where, and show errors' tracebacks.", rich_help_panel=RUNNING),
    ] = False,
) -> int:
    """Make pictures larger: to any size, sharper than interpolation.

    [bold]liif upscale photo.jpg --scale 2.7[/bold] writes photo_x2.7.png beside it.

    The colour profile, EXIF, 16 bits, transparency and the frames of animations
    are kept where the format has room for them. A format that cannot hold the
    depth, the transparency or the frames is refused; GIF makes do with 256 colours.
    """
    _check_usage(inputs or [], files_from, output, as_json=as_json)
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing contradict each other; give one")
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other; give one")
    sizes: dict[str, Any] = {
        "scale": scale,
        "size": _parse_size(size),
        "width": width,
        "height": height,
        "longest": longest,
        "megapixels": megapixels,
    }
    _check_sizes(sizes)
    window = _parse_box(box)

    # Heard when torch is loaded: threads that wait sleep instead of spinning. Where other programs run too, spinning
    # threads keep each other from the processor: 200 small pictures took 194 s on two busy cores, and 47 s with this.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from liif_cli import jobs as planning
    from liif_cli.images import DEFAULT_MAX_PIXELS
    from liif_cli.sizing import Box, Sizing

    into_folder = output is not None and output.endswith(("/", "\\"))
    options = planning.Options(
        sizing=Sizing(**sizes),
        box=None if window is None else Box(*window),
        ensemble=ensemble,
        output=None if output is None else planning.STANDARD if output == "-" else Path(output),
        into_folder=into_folder,
        format=format,
        quality=quality,
        overwrite=overwrite,
        skip_existing=skip_existing,
        strip=strip,
        depth=depth,
        background=_colour(background),
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
    )
    apart = None if output in (None, "-") else options.output
    found = planning.find_sources(inputs or [], recursive=recursive, files=_listed(files_from), apart=apart)
    plan = planning.plan_jobs(found.sources, options)
    if not quiet:
        by_name = "by their names outputs of other inputs here (to enlarge them too, name a folder with -o)"
        _note("left out", plan.left_out, by_name)
        _note("left out", found.passed_over, "no pictures that can be read")
        _note("not looked into", found.closed, "add -r for folders in folders")
    if as_json:
        _record_left_out(plan.left_out, model)
    if not plan.jobs:
        raise InputError("nothing to do: " + ("every input is an output" if found.sources else "the list is empty"))
    if dry_run:
        return _tell((planning.preview(job, options) for job in plan.jobs), model, as_json=as_json, quiet=quiet)
    (job, *others) = plan.jobs
    if not others and not verbose and job.exact != planning.STANDARD and not planning.comes_once(job.source.path):
        # Torch takes seconds to load, and there may be nothing to do.
        found_out = planning.preview(job, options)
        if found_out.error is not None or found_out.skipped:
            return _tell([found_out], model, as_json=as_json, quiet=quiet, seconds=0.0)
    return _run(
        plan.jobs,
        options,
        {"model": model, "device": device, "precision": precision, "memory": memory, "direct": direct},
        {"as_json": as_json, "quiet": quiet, "verbose": verbose},
        fail_fast=fail_fast,
    )


def _run(
    jobs: Sequence[Job], options: Options, loading: dict[str, Any], saying: dict[str, bool], *, fail_fast: bool
) -> int:
    from liif_cli import batch
    from liif_cli.cli.batch_report import Report, exit_code
    from liif_cli.jobs import STANDARD
    from liif_cli.upscaler import load

    to_stdout = jobs[0].exact == STANDARD
    if to_stdout and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("-o -: standard output is a terminal; add > FILE, or name a file with -o")
    if to_stdout and saying["as_json"]:
        raise UsageError("--json and a picture on standard output do not go together; name a file with -o")
    upscaler = load(**loading)
    if saying["verbose"]:
        mib = upscaler.working_bytes() >> 20
        model = "the model that suits each picture," if loading["model"] == AUTO else f"model {upscaler.source}"
        complain(f"{model} on {upscaler.device} in {upscaler.computes_in}, within {mib} MiB")
    report = Report(len(jobs), model=loading["model"], picture_to_stdout=to_stdout, **saying)
    try:
        with report:
            results = batch.run(
                jobs, upscaler, options, report, fail_fast=fail_fast, limit_process=loading["memory"] is not None
            )
    except KeyboardInterrupt:
        report.interrupted(overwrite=options.overwrite)
        raise
    report.summary()
    report.advise()
    return exit_code(results)


def _tell(previews: Iterable[Preview], model: str, *, as_json: bool, quiet: bool, seconds: float | None = None) -> int:
    import json

    from liif_cli.cli.batch_report import exit_code, preview_line, record, words

    told = []
    for found in previews:
        told.append(found)
        if found.error is not None:
            tell(words(found.source, found.error))
        if as_json:
            print(json.dumps({**record(found, model), "seconds": seconds}), flush=True)
        elif found.error is None and not quiet:
            print(preview_line(found), flush=True)
    return exit_code(told)


def _check_usage(inputs: Sequence[str], files_from: str | None, output: str | None, *, as_json: bool) -> None:
    if not inputs and files_from is None:
        raise UsageError(
            "nothing to upscale: name pictures, folders or patterns, as in: liif upscale photo.jpg --scale 2.7"
            " (liif upscale --help has more)"
        )
    if output == "":
        raise UsageError("-o '': name a file or a folder")
    if "" in inputs:
        raise UsageError("'': an input needs a name")
    reads_stdin = "-" in inputs
    if reads_stdin and files_from == "-":
        raise UsageError("- and --files-from - both want standard input; give one")
    if (reads_stdin or files_from == "-") and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("-: standard input is a terminal; pipe something in, as in: liif upscale - < photo.jpg")
    if output == "-" and as_json:
        raise UsageError("--json and -o - both want standard output; name a file with -o")


def _check_sizes(sizes: dict[str, Any]) -> None:
    """Say what is wrong with a size before anything else is done, in the words it was asked for with."""
    given = {name: value for name, value in sizes.items() if value is not None}
    if len(given) != 1:
        got = " and ".join(f"--{name}" for name in given)
        options = ", ".join(f"--{name}" for name in sizes)
        problem = f"{got} contradict each other" if given else "the output needs a size"
        raise UsageError(f"{problem}; give one of {options}")
    for name, value in given.items():
        for number in value if isinstance(value, tuple) else (value,):
            if not 0 < number < math.inf:
                raise UsageError(f"--{name} {_as_given(value)}: must be above 0 and finite")
            if number > 2**31:
                raise UsageError(f"--{name} {_as_given(value)}: larger than any picture")


def _as_given(value: Any) -> str:
    return f"{value[1]}x{value[0]}" if isinstance(value, tuple) else f"{value:g}"


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,12})\s*[x×]\s*([0-9]{1,12})", text.strip().lower())
    if match is None:
        raise UsageError(f"--size {text!r}: write it as width x height in pixels, such as 1920x1080")
    return int(match[2]), int(match[1])


def _parse_box(text: str | None) -> tuple[float, float, float, float] | None:
    """(top, left, bottom, right) of what is written as left,top,right,bottom."""
    if text is None:
        return None
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--box {text!r}: write it as left,top,right,bottom in pixels, such as 100,50,400,250"
        ) from None
    if left < 0 or top < 0:
        raise UsageError(f"--box {text}: begins outside of the picture, whose top left corner is 0,0")
    if not (left < right < math.inf and top < bottom < math.inf):
        raise UsageError(f"--box {text}: is empty or upside down; it is left,top,right,bottom from the top left corner")
    return top, left, bottom, right


def _colour(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    from PIL import ImageColor

    try:
        colour = list(ImageColor.getrgb(text))
    except ValueError:
        colour = []
    if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
        raise UsageError(f"--background {text!r}: is no opaque colour; write it as white or #fafafa")
    return colour[0], colour[1], colour[2]


def _listed(files_from: str | None) -> list[Path]:
    if files_from is None:
        return []
    from liif_cli.jobs import listed, standard_input

    try:
        return listed(standard_input().read() if files_from == "-" else Path(files_from).read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--files-from {files_from}: cannot be read: {reason}") from None


def _record_left_out(paths: Sequence[Path], model: str) -> None:
    import json

    from liif_cli.cli.batch_report import record
    from liif_cli.jobs import Preview

    for path in paths:
        print(json.dumps(record(Preview(path, None, None, None, skipped=True), model)), flush=True)


def _note(what: str, paths: Sequence[Path], words: str) -> None:
    if paths:
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        complain(f"{what}: {', '.join(map(shown, paths[:3]))}{more}; {words}")
