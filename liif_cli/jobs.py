"""What is to be done, settled before any of it is: the inputs that are meant, and the name of every output.

Nothing here decodes a picture, but for a preview that depends on its transparency. Headers are read where a name or a
plan depends on them.
"""

from __future__ import annotations

import codecs
import glob
import io
import os
import re
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from liif_cli.errors import InputError, LiifError, OutputError, UsageError
from liif_cli.files import is_file, is_folder, temporary_beside, walk
from liif_cli.images import (
    DEFAULT_MAX_PIXELS,
    EXTENSIONS,
    Format,
    Header,
    check_animation,
    check_output,
    fitted,
    format_of,
    may_move,
    read,
    read_header,
)
from liif_cli.sizing import Box, Size, Sizing, box_sides

STANDARD = Path("-")  # standard input or output
# Pictures that may move keep their format, where none is asked for; all others become PNG.
OWN_EXTENSION = {"GIF": ".gif", "WEBP": ".webp", "AVIF": ".avif"}


class Source(NamedTuple):
    """An input and where it stood below the folder that was named, if one was. ``problem``: why there is none.
    ``found``: nobody named it, a folder or a pattern did."""

    path: Path
    below: Path = Path()
    problem: InputError | None = None
    found: bool = False


@dataclass(frozen=True)
class Options:
    """What shall become of each picture."""

    sizing: Sizing
    box: Box | None = None
    ensemble: bool = False
    output: Path | None = None  # a file, a folder, "-", or None: beside the input
    into_folder: bool = False  # whether ``output`` is meant as a folder, be it there or not
    format: str | None = None  # an extension; None: PNG, or what ``output`` says
    quality: int | None = None
    overwrite: bool = False
    skip_existing: bool = False
    strip: bool = False
    depth: int | None = None  # bits a sample, 8 or 16; None: the picture's own
    background: tuple[int, int, int] | None = None  # what shows through where a picture is transparent
    max_pixels: int | None = DEFAULT_MAX_PIXELS

    @property
    def window(self) -> str:
        """How a file name tells the box: left, top, right, bottom; nothing where all of the picture is painted."""
        if self.box is None:
            return ""
        return "_" + ",".join(f"{side:.15g}" for side in (self.box.left, self.box.top, self.box.right, self.box.bottom))


@dataclass(frozen=True)
class Job:
    """An input and the name of what it becomes, as far as that is known without its size."""

    source: Source
    folder: Path
    stem: str
    extension: str | None  # None: standard output, whose format waits for the picture
    exact: Path | None = None  # the output's whole name where the user gave it

    def output(self, options: Options, size: Size | None) -> Path | None:
        """The file it becomes; None where the name tells pixels and these are not known yet."""
        if self.exact is not None:
            return self.exact
        label = options.sizing.label
        if label is None:
            if size is None:
                return None
            label = f"{size[1]}x{size[0]}"
        return self.folder / f"{self.stem}_{label}{options.window}{self.extension}"


_A_BOX = r"(?:_[\d.]+(?:,[\d.]+){3})"


class Found(NamedTuple):
    """``passed_over``: files in folders that were looked through, or of patterns, of kinds that cannot be read.
    ``closed``: folders in these that were not looked into."""

    sources: list[Source]
    passed_over: list[Path]
    closed: list[Path]


class Plan(NamedTuple):
    """``left_out``: inputs that are themselves outputs of others in the list, from an earlier run."""

    jobs: list[Job]
    left_out: list[Path]


def listed(content: bytes) -> list[Path]:
    """The paths in a list, one a line, or separated by zero bytes as ``find -print0`` has them."""
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes them
        content = content.decode("utf-16", errors="replace").encode()
    separator = b"\0" if b"\0" in content else b"\n"
    lines = (line.removesuffix(b"\r") if separator == b"\n" else line for line in content.split(separator))
    return [_plain(os.fsdecode(line)) for line in lines if line.strip()]


def _plain(text: str) -> Path:
    # A file that is really called "-" stays apart from standard input.
    path = Path(text)
    return Path.cwd() / path if path == STANDARD else path


def find_sources(
    inputs: Sequence[str], *, recursive: bool, files: Iterable[Path] = (), apart: Path | None = None
) -> Found:
    """Files, folders, globs and ``-`` to a list of inputs, in order, none twice; then ``files``, which are no patterns.

    What is missing or empty stays in the list, to be reported when its turn comes. ``apart``, the folder where outputs
    go, is passed over where it lies within a folder that is looked through.
    """
    found: dict[str, Source] = {}
    passed_over: dict[str, Path] = {}
    closed: list[Path] = []
    looks = [_meant(text, recursive, apart) for text in inputs]
    looks += [_in_folder_or_itself(path, recursive, apart) for path in files]
    for sources, others, below in looks:
        closed += below
        for source in sources:
            found.setdefault("-" if source.path == STANDARD else _place(source.path), source)
        passed_over.update((_place(path), path) for path in others)
    return Found(list(found.values()), [path for place, path in passed_over.items() if place not in found], closed)


def _meant(text: str, recursive: bool, apart: Path | None) -> Found:
    if text == "-":
        return Found([Source(STANDARD)], [], [])
    if not os.path.lexists(text) and glob.has_magic(text):
        matches = sorted(map(_plain, glob.glob(text, recursive=True)))  # noqa: PTH207  patterns may be absolute
        matches = [item for item in matches if not _is_tile(item)]
        sources = [Source(item, found=True) for item in matches if _is_picture_name(item)]
        others = list(filter(_is_of_another_kind, matches))
        closed: list[Path] = []
        for item in matches:  # folders mean what is in them, as where a shell fills in the pattern
            if is_folder(item) and (apart is None or item.resolve() != apart.resolve()):
                found = _in_folder_or_itself(item, recursive, apart)
                sources += [source for source in found.sources if source.path != item]  # not that it is empty
                others += found.passed_over
                closed += found.closed
        if sources:
            return Found(sources, others, closed)
        return Found([Source(_plain(text), problem=InputError(f"{text}: no picture matches this pattern"))], [], [])
    return _in_folder_or_itself(_plain(text), recursive, apart)


def _in_folder_or_itself(path: Path, recursive: bool, apart: Path | None) -> Found:
    if not is_folder(path):
        return Found([Source(path)], [], [])
    if _is_tile(path):
        return Found([], [], [])
    pictures = []
    others: list[Path] = []
    closed: list[Path] = []
    unreadable: list[OSError] = []
    for folder, folders, names in walk(path, unreadable.append):
        # Hidden folders hold thumbnails and the like.
        kept = [folder / name for name in folders if not name.startswith(".")]
        kept = [item for item in kept if not _is_tile(item) and (apart is None or item.resolve() != apart.resolve())]
        closed += [] if recursive else kept
        folders[:] = [item.name for item in kept if recursive]
        items = [folder / name for name in names]
        others += filter(_is_of_another_kind, items)
        names_below = (item for item in items if _is_picture_name(item))
        pictures += [Source(item, item.parent.relative_to(path), found=True) for item in names_below]
    problems = [
        Source(Path(error.filename), problem=InputError(f"{error.filename}: cannot be read: {error.strerror}"))
        for error in unreadable
    ]
    if pictures or problems:
        return Found(pictures + problems, others, closed)
    hint = "" if recursive else "; add -r to look in its folders too"
    return Found([Source(path, problem=InputError(f"{path}: no pictures in this folder{hint}"))], [], [])


def _is_tile(path: Path) -> bool:
    """Whether it is, or lies in, the folder of a DeepZoom picture's tiles."""
    folders = (folder for folder in (path, *path.parents) if folder.name.endswith("_files"))
    return any(is_file(folder.with_name(f"{folder.name.removesuffix('_files')}.dzi")) for folder in folders)


def _is_picture_name(path: Path) -> bool:
    if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
        return False
    try:
        return path.is_file()
    except OSError:  # a link to where nobody may look: to be reported at its turn
        return True


def _is_of_another_kind(path: Path) -> bool:
    return path.suffix.lower() not in EXTENSIONS and not path.name.startswith(".") and is_file(path)


def plan_jobs(sources: Sequence[Source], options: Options) -> Plan:
    """Name every output before any work is done.

    Raises UsageError for outputs that cannot be told apart or formats that cannot be written.
    """
    exact = _exact_output(sources, options)
    jobs = [_job(source, exact, options) for source in sources]
    jobs, left_out = _without_outputs(jobs, options)
    jobs = _told_apart(jobs)
    _refuse_collisions(jobs, options.sizing.label or "WIDTHxHEIGHT")
    _refuse_idle_quality(jobs, options)
    return Plan(jobs, left_out)


def _exact_output(sources: Sequence[Source], options: Options) -> Path | None:
    """The one file or stream that all goes to, or None where each input has its own name."""
    output, wanted = options.output, options.format
    if wanted is not None:
        format_of(Path(f"--format {wanted}"), wanted)
    if output is None and any(source.path == STANDARD for source in sources):
        if len(sources) > 1:
            raise UsageError("-: say with -o in which folder the picture from standard input goes")
        output = STANDARD
    if output is None:
        return None
    if output == STANDARD:
        if len(sources) > 1:
            raise UsageError(f"-o -: standard output takes one picture, and there are {len(sources)}; name a folder")
        if wanted is not None and format_of(Path(), wanted).name == "DeepZoom":
            raise UsageError("-o -: a DeepZoom pyramid is a folder of files; name a file that ends in .dzi")
        return STANDARD
    if _is_folder(output, sources, options):
        if is_file(output):
            raise UsageError(f"-o {output}: is a file, and a folder is needed here")
        return None
    if len(sources) > 1:
        raise UsageError(f"-o {output}: {len(sources)} pictures do not go into one file; name a folder")
    if output.suffix.lower() in EXTENSIONS and wanted and format_of(output).name != format_of(output, wanted).name:
        raise UsageError(f"-o {output}: its extension and --format {wanted} contradict each other; drop one")
    format_of(output, wanted)
    return output


def _is_folder(output: Path, sources: Sequence[Source], options: Options) -> bool:
    """Whether ``-o`` names a folder: one that is there, a name without an ending, or where a tree is to be kept."""
    if options.into_folder or is_folder(output) or any(source.below != Path() for source in sources):
        return True
    known = output.suffix.lower() in EXTENSIONS or (output.suffix and len(sources) == 1)
    return not is_file(output) and not known


def _job(source: Source, exact: Path | None, options: Options) -> Job:
    output = options.output
    folder = source.path.parent if output is None else output / source.below
    if options.format:
        extension: str | None = _extension(options.format)
    else:
        extension = _natural_extension(source) if exact in (None, STANDARD) else ".png"  # which exact names make idle
    if source.path == STANDARD:
        return Job(source, folder, "stdin", extension or (None if exact == STANDARD else ".png"), exact)
    return Job(source, folder, source.path.stem, extension or ".png", exact)


def _extension(wanted: str) -> str:
    asked, known = f".{wanted.lstrip('.').lower()}", format_of(Path(), wanted).extensions
    return asked if asked in known else known[0]


def _natural_extension(source: Source) -> str | None:
    if source.path == STANDARD:
        return None
    path = source.path
    if source.problem is None and is_file(path) and may_move(path):
        try:
            header = read_header(path, max_pixels=None)
        except InputError:
            return ".png"  # it will be reported at its turn
        if header.frames > 1:
            return OWN_EXTENSION.get(header.format, ".png")
    return ".png"


def _without_outputs(jobs: list[Job], options: Options) -> Plan:
    """Without pictures that bear the name of what another one here becomes."""
    label = rf"(?:x[\d.]+|\d+x\d+){_A_BOX}?"
    made = {
        (_place(job.folder), stem): job.extension
        for job in jobs
        if job.exact is None
        for stem in (job.stem, _with_ending(job))
    }

    def is_output(job: Job) -> bool:
        path = job.source.path
        match = re.fullmatch(rf"(.+)_{label}", path.stem, re.DOTALL)
        made_from = None if match is None else (_place(path.parent), match[1])
        # What somebody names is an output only where it has the very name of one.
        return made_from in made and (job.source.found or made[made_from] == path.suffix.lower())

    left_out = [job.source.path for job in jobs if is_output(job)]
    return Plan([job for job in jobs if not is_output(job)], left_out)


def _place(path: Path) -> str:
    # Links are not followed, since they are names of their own; but what lies above one is above what it leads to.
    if ".." in path.parts:
        path = Path(os.path.realpath(path.parent), path.name) if path.name != ".." else path.resolve()
    return os.path.abspath(path)  # noqa: PTH100


def _told_apart(jobs: Sequence[Job]) -> list[Job]:
    """Jobs whose outputs would have one name keep their inputs' endings in it, where these differ: ``a_heic_x2.png``
    and ``a_jpg_x2.png``."""

    endings: dict[tuple[str, str, str | None], set[str]] = {}
    for job in jobs:
        if job.source.problem is None:
            endings.setdefault(_name_of(job), set()).add(job.source.path.suffix.lower())
    return [replace(job, stem=_with_ending(job)) if len(endings.get(_name_of(job), ())) > 1 else job for job in jobs]


def _name_of(job: Job) -> tuple[str, str, str | None]:
    """What an output is called. Names that differ in case only are one file on many systems, though not where two such
    inputs lie beside each other."""
    beside = job.folder == job.source.path.parent
    return _place(job.folder), job.stem if beside else job.stem.casefold(), job.extension


def _with_ending(job: Job) -> str:
    ending = job.source.path.suffix.lower().lstrip(".")
    return f"{job.stem}_{ending}" if ending else job.stem


def _refuse_collisions(jobs: Sequence[Job], label: str) -> None:
    taken: dict[tuple[str, str, str | None], Job] = {}
    collisions: list[tuple[Job, Job]] = []
    for job in jobs:
        if job.source.problem is not None:
            continue
        other = taken.setdefault(_name_of(job), job)
        if other is not job:
            collisions.append((other, job))
    if collisions:
        other, job = collisions[0]
        more = f" ({len(collisions) - 1} more like this)" if len(collisions) > 1 else ""
        raise UsageError(
            f"{other.source.path} and {job.source.path} would both be written as {job.stem}_{label}{job.extension}"
            f" in {job.folder}{more}; rename one, or upscale them into different folders"
        )


def _refuse_idle_quality(jobs: Sequence[Job], options: Options) -> None:
    """A quality that no output would have is a misunderstanding: most likely of which format is written."""
    named = [job for job in jobs if job.source.problem is None]
    endings = {job.extension if job.exact is None or job.exact == STANDARD else job.exact.suffix for job in named}
    if options.quality is None or not named or (None in endings and options.format is None):
        return
    refuse_idle_quality(options, {format_of(Path(), options.format or ending) for ending in endings})


def refuse_idle_quality(options: Options, formats: Collection[Format]) -> None:
    """Raise UsageError for a quality where no format has one."""
    if options.quality is not None and not any(known.lossy for known in formats):
        written = " and ".join(sorted(known.name for known in formats))
        raise UsageError(
            f"--quality {options.quality}: {written} has no loss to choose; leave it out, or choose --format jpg,"
            " webp or avif"
        )


class _ReadOnce(io.BytesIO):
    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name  # what errors call it


def standard_input() -> io.BytesIO:
    """All of standard input. Raises InputError where it is closed or cannot be read."""
    if sys.stdin is None:
        raise InputError("standard input: is closed")
    try:
        return _ReadOnce(sys.stdin.buffer.read(), "standard input")
    except (OSError, ValueError) as error:
        raise InputError(f"standard input: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def comes_once(path: Path) -> bool:
    """Whether it is standard input, a named pipe or the like, which can be read once only."""
    if path == STANDARD:
        return True
    return not is_file(path) and not is_folder(path) and os.path.exists(path)  # noqa: PTH110  see is_file


def pipe(path: Path) -> io.BytesIO | None:
    """All that comes out of a named pipe, or of another file that can be read once only; None of an ordinary one.
    Raises InputError where it cannot be read."""
    if not comes_once(path):
        return None
    try:
        return _ReadOnce(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


class Preview(NamedTuple):
    """What would become of a job: as ``batch.Result``, by headers alone."""

    source: Path
    output: Path | None
    size: Size | None
    output_size: Size | None
    frames: int = 1
    error: LiifError | None = None
    skipped: bool = False


def preview(job: Job, options: Options) -> Preview:
    """Say what a job would write, or why it would not, as far as the header of its input tells."""
    path = job.source.path
    try:
        if job.source.problem is not None:
            raise job.source.problem
        output = job.output(options, None)
        if output is not None and _stays(output, options):
            return Preview(path, output, None, None, skipped=True)
        content = standard_input() if path == STANDARD else pipe(path) or path
        header = read_header(content, max_pixels=options.max_pixels)
    except LiifError as error:
        return Preview(path, None, None, None, error=error)
    size: Size | None = None
    try:
        size = output_size(header.size, options)
        output = job.output(options, size)
        assert output is not None
        if _stays(output, options):
            return Preview(path, output, header.size, size, header.frames, skipped=True)
        _check_preview(content, output, size, header, options)
    except LiifError as error:
        return Preview(path, output, header.size, size, header.frames, error=error)
    return Preview(path, output, header.size, size, header.frames)


def refuse_original(source: Path | io.BytesIO, output: Path) -> None:
    """Raise OutputError where an output is, by way of a link, the picture that it is made of: who wants that replaced
    gives its own name."""
    if not isinstance(source, Path) or source == STANDARD or output == STANDARD or not is_file(output):
        return
    places = {path.parent.resolve() / path.name for path in (source, output)}
    if len(places) == 2 and source.resolve() == output.resolve():
        raise OutputError(f"{output}: leads to the input, {source}; name another output with -o")


def _stays(output: Path, options: Options) -> bool:
    return options.skip_existing and output != STANDARD and is_file(output)


def output_size(image: Size, options: Options) -> Size:
    """The size that a picture of ``image`` size becomes.

    Raises InputError for a box that is not inside it, UsageError for a size that is none.
    """
    box = options.box
    if box is not None and not (box.bottom <= image[0] and box.right <= image[1]):
        raise InputError(
            f"the box {box.left:g},{box.top:g},{box.right:g},{box.bottom:g} (left, top, right, bottom) is not inside"
            f" the picture of {image[1]}x{image[0]} pixels"
        )
    return options.sizing.resolve(box_sides(image, box))


def _check_preview(source: Path | io.BytesIO, output: Path, size: Size, header: Header, options: Options) -> None:
    if output != STANDARD and is_file(output) and not options.overwrite:
        raise occupied(output)
    refuse_original(source, output)
    # Folders that the run itself would make: the question goes to the nearest one that is there.
    folder = output.parent
    if job_makes(folder, options):
        while not os.path.lexists(folder) and folder != folder.parent:
            folder = folder.parent
        if not is_folder(folder):
            raise OutputError(f"{output.parent}: the folder cannot be made: {folder} is a file")
    asked = output if folder == output.parent else temporary_beside(folder / output.name)
    wanted = options.format or output.suffix
    if output == STANDARD:  # where it will wait until it is whole
        asked = temporary_beside(temporary_place() / "picture")
        wanted = standard_format(options, header.format, header.frames)
    alpha = header.channels in (2, 4)
    like = replace(
        header,
        channels=header.channels - (alpha and options.background is not None),
        depth=options.depth or header.depth,
    ).blank()
    try:
        known = format_of(asked, wanted)
        if output == STANDARD:
            refuse_idle_quality(options, [known])
        if header.frames > 1:
            check_animation(asked, size, fitted(like, known), format=wanted, overwrite=options.overwrite)
            return
        colour = options.background is not None and len(set(options.background)) > 1
        if (header.channels == 2 and colour) or (like.has_alpha and (not known.alpha or known.name == "GIF")):
            # Whether its transparency can be done without, or a colour can stand for it, is not in the header.
            if isinstance(source, io.BytesIO):
                source.seek(0)
            like = read(source, max_pixels=options.max_pixels)
        like = fitted(like, known, depth=options.depth, background=options.background)
        check_output(asked, size, like, format=wanted, strip=options.strip, overwrite=options.overwrite)
    except LiifError as error:
        name = "standard output" if output == STANDARD else str(output)
        raise type(error)(str(error).replace(str(asked), name)) from None


def occupied(output: Path) -> OutputError:
    """The error for an output that is there, where nobody said what to do."""
    return OutputError(f"{output}: already exists; add --skip-existing to leave it, or --overwrite to replace it")


def temporary_place() -> Path:
    """The folder for temporary files. Raises OutputError where there is none."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        raise OutputError(
            "no folder for temporary files can be written to; name one by the environment variable TMPDIR"
        ) from None


def standard_format(options: Options, own: str, frames: int) -> str:
    """The format of what goes to standard output: as asked for, an animation's own, else PNG."""
    if options.format is not None:
        return options.format.lstrip(".").lower()
    return own.lower() if frames > 1 and own in OWN_EXTENSION else "png"


def job_makes(folder: Path, options: Options) -> bool:
    """Whether a folder that is missing is made for its outputs: the one given with ``-o``, and the tree in it."""
    output = options.output
    return output is not None and output != STANDARD and (folder == output or output in folder.parents)
