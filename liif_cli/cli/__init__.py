"""The command line: one file a command, each of which parses, makes one call to the library and prints.

Errors become exit codes here and nowhere else. Nothing in this package imports torch before there is work for it.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from liif_cli import __version__
from liif_cli.cli.eval import evaluate
from liif_cli.cli.fetch_weights import fetch_weights
from liif_cli.cli.upscale import upscale
from liif_cli.errors import LiifError

INTERRUPTED = 130


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """Turn what a command raises, or returns, into its exit code. Bugs keep their traceback."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        try:
            code = command(**arguments)
        except LiifError as error:
            print(f"liif: {error}", file=sys.stderr)
            code = error.exit_code
        except KeyboardInterrupt:
            print("liif: interrupted", file=sys.stderr)
            code = INTERRUPTED
        except BrokenPipeError:
            # Whoever read our output has gone. Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        raise typer.Exit(code or 0)

    return run


app = typer.Typer(
    name="liif",
    help="Photographs at any size: arbitrary-scale super-resolution with LIIF.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(guarded(upscale))
app.command("fetch-weights")(guarded(fetch_weights))
app.command("eval")(guarded(evaluate))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"liif {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    app(prog_name="liif")
