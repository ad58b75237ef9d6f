"""The command line: one file a command, each of which parses, makes one call to the library and prints.

Errors become exit codes here and nowhere else. Nothing in this package imports torch before there is work for it.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import inspect
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from liif_cli import __version__
from liif_cli.cli.eval import evaluate
from liif_cli.cli.fetch_weights import fetch_weights
from liif_cli.cli.machine import flag
from liif_cli.cli.messages import complain, one_line, shown
from liif_cli.cli.stopping import stoppable
from liif_cli.cli.train import train
from liif_cli.cli.upscale import EXAMPLES, upscale
from liif_cli.control_groups import processors
from liif_cli.errors import LiifError
from liif_cli.files import FULL, cannot_write, is_file

INTERRUPTED = 130
OF_THE_PATH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """Turn what a command raises, or returns, into its exit code. Bugs keep their traceback."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        try:
            with stoppable():
                code = command(**arguments)
        except LiifError as error:
            complain(one_line(error))
            code = error.exit_code
        except KeyboardInterrupt as error:
            complain(str(error) or "interrupted")
            code = getattr(error, "exit_code", INTERRUPTED)
        except BrokenPipeError:
            complain("stopped: the program that read standard output has closed it")
            code = 1
        except OSError as error:
            # What concerns files is told where it happens; what is left is what was to be said, and paths that may not
            # even be looked at.
            if error.errno in OF_THE_PATH and isinstance(error.filename, str | bytes):
                complain(f"{shown(os.fsdecode(error.filename))}: {error.strerror}")
                code = 1
            elif error.errno in FULL and error.filename is None:
                code = _tell_full(error)
            else:
                raise
        _drop_unwritten()
        raise typer.Exit(code or 0)

    return run


def _tell_full(error: OSError) -> int:
    told = cannot_write(Path("standard output"), error)
    complain(str(told))
    _drop_unwritten()
    return told.exit_code


def _drop_unwritten() -> None:
    """Where a standard stream takes no more, forget what waits for it: Python would complain again when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Command(TyperCommand):
    """A command whose ``--help`` looks like the other flags."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
        return option


app = typer.Typer(
    name="liif",
    help="Photographs at any size: arbitrary-scale super-resolution with LIIF.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _flowing(text: str | None) -> str:
    """A docstring as help that fits its terminal: one line a paragraph, but for those with commands in them."""
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(part if "\n  " in part else part.replace("\n", " ") for part in paragraphs)


app.command(help=_flowing(upscale.__doc__), epilog=EXAMPLES, cls=_Command)(guarded(upscale))
for name, command in (("train", train), ("fetch-weights", fetch_weights), ("eval", evaluate)):
    app.command(name, help=_flowing(command.__doc__), cls=_Command)(guarded(command))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"liif {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, flag("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_NAMES = "liif-names"


def _as_they_are_or_told(error: UnicodeError) -> tuple[str | bytes, int]:
    """How what an encoding has no characters for is printed of files' names: bytes that were no text as they are,
    characters by their numbers."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(_NAMES, _as_they_are_or_told)


def _heed_processor_limit() -> None:
    """Have libraries use no more threads than a container may have processors; they count those of the machine."""
    limit = processors()
    if limit is not None and limit < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, round(limit))))


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: the command line, or these arguments instead. Ends with SystemExit."""
    _heed_processor_limit()
    if sys.stderr is None:  # closed: what is said there must not go to standard output, where pictures may go
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  for as long as the program runs
    for stream in (sys.stdout, sys.stderr):
        # Names of files need not be text in the terminal's encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_NAMES)
    try:
        Path.cwd()
    except OSError:
        complain("the folder that you are in has been deleted; change to another one")
        sys.exit(1)
    try:
        code = app(arguments, prog_name="liif", standalone_mode=False)
    except _ArgumentsError as error:
        code = _explain(error)
    except OSError as error:  # of help and the like, for which nothing else is written
        if error.errno not in FULL:
            raise
        code = _tell_full(error)
    sys.exit(code or 0)


# What the parser raises. Its own base class, wherever this version of typer keeps that.
_ArgumentsError: type[Any] = typer.BadParameter.__bases__[0]


def _explain(error: Any) -> int:
    """Say in one line what is wrong with the arguments."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = error.ctx.command_path if error.ctx is not None else "liif"
        files = [word for word in sys.argv[1:] if word.startswith("-") and is_file(Path(word))]
        hint = f"; for the file write ./{shown(files[0])}" if files else ""
        complain(f"{shown(' '.join(error.format_message().split()))}{hint} (see {command} --help)")
    return int(error.exit_code)
