"""`liif fetch-weights`: models by name, from the registry or one's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from liif_cli.cli.machine import flag
from liif_cli.errors import ModelError, UsageError
from liif_cli.files import with_home

if TYPE_CHECKING:
    from rich.progress import Progress

    from liif_cli.weights.download import Watcher
    from liif_cli.weights.fetch import Fetched


def fetch_weights(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Models of the registry; --list shows them.", show_default=False),
    ] = None,
    show: Annotated[bool, flag("--list", help="Show every model: where it is, its size, scores and licence.")] = False,
    everything: Annotated[bool, flag("--all", help="Fetch every model of the registry.")] = False,
    verify: Annotated[
        bool, flag("--verify", help="Verify the checksums of the models named, or of all that are on this machine.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="URL|FILE",
            help="Take the model from this URL, checkpoint or training run: either the registry's model NAME, or a"
            " model of your own (see --name).",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="With --from: register it under this name, for -m NAME. \\[default: the file's own name]",
            show_default=False,
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(
            "--sha256",
            metavar="HEX",
            help="With --from: the checksum that the file must have. Required for URLs without https.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="The folder of models to use instead of LIIF_CACHE or the platform's cache folder; other commands find"
            " them there by name where LIIF_CACHE is set to it.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, flag("--overwrite", help="Fetch again even if present; replace an existing model of the same --name.")
    ] = False,
    as_json: Annotated[bool, flag("--json", help="Print one JSON object per model.")] = False,
) -> None:
    """Download, convert and check models.

    Files of the list are verified against their checksums, your own against
    --sha256, if given. All are read without running any code in them, checked
    against their networks and stored as .safetensors. Interrupted
    downloads are resumed. Without a connection, the error message says where to
    get the file and where to put it; do that and run the command again.

    [bold]What there is, and what is here:[/bold]
      liif fetch-weights --list

    [bold]Download a model and use it:[/bold]
      liif fetch-weights rdn-liif
      liif upscale photo.jpg --scale 2.7 -m rdn-liif

    [bold]Convert and register one of your own:[/bold]
      liif fetch-weights --from old.pth --name mine
    """
    from liif_cli.weights import cache_folder

    _check_options(names or [], show, everything, verify, source, name, sha256)
    cache = (with_home(folder) if folder is not None else cache_folder()).absolute()
    if show:
        _list(names or [], cache, as_json)
    elif verify:
        _verify(names or [], cache, as_json)
    elif source is not None:
        _bring(names or [], source, name, sha256, cache, overwrite, as_json)
    else:
        _fetch(names or [], cache, overwrite, as_json)


def _check_options(
    names: list[str],
    show: bool,
    everything: bool,
    verify: bool,
    source: str | None,
    name: str | None,
    sha256: str | None,
) -> None:
    chosen = {"--list": show, "--all": everything, "--verify": verify, "--from": source is not None}
    ways = [option for option, given in chosen.items() if given]
    if len(ways) > 1:
        raise UsageError(f"{ways[0]} and {ways[1]} exclude each other")
    if not ways and not names:
        raise UsageError("name a model, or add --all, or --list to see what there is")
    if everything and names:
        raise UsageError("--all takes no names")
    if source is None and (name is not None or sha256 is not None):
        raise UsageError(f"{'--name' if name is not None else '--sha256'} goes with --from URL or --from FILE")
    if source is not None and names and (len(names) > 1 or name is not None or sha256 is not None):
        raise UsageError(
            "--from brings one model: either one NAME of the registry, whose checksum is known, or your own with --name"
        )


def _list(names: list[str], cache: Path, as_json: bool) -> None:
    from liif_cli.weights.listing import as_table, look

    rows = look(names, cache)
    for line in map(json.dumps, rows) if as_json else as_table(rows):
        typer.echo(line)


def _verify(names: list[str], cache: Path, as_json: bool) -> None:
    from liif_cli.weights.fetch import verify

    verdicts = verify(names, cache)
    for verdict in verdicts:
        row = {"name": verdict.name, "path": str(verdict.path), "ok": not verdict.problem, "problem": verdict.problem}
        typer.echo(json.dumps(row) if as_json else f"{verdict.name}: {verdict.problem or 'as recorded'}")
    if bad := [verdict.name for verdict in verdicts if verdict.problem]:
        remedy = "fetch again with --overwrite, or delete; what comes with the package: install liif again"
        raise ModelError(f"{len(bad)} of {len(verdicts)} models not as recorded: {', '.join(bad)}; {remedy}")


def _bring(
    names: list[str], source: str, name: str | None, sha256: str | None, cache: Path, overwrite: bool, as_json: bool
) -> None:
    from liif_cli.weights import find
    from liif_cli.weights.fetch import fetch, name_of, register

    with _watcher() as watcher:
        if names:
            fetched = fetch(find(names[0]), cache, watcher, source=source, overwrite=overwrite)
        else:
            own = name_of(source) if name is None else name
            fetched = register(source, own, cache, watcher, sha256=sha256, overwrite=overwrite)
    _report(fetched, as_json)


def _fetch(names: list[str], cache: Path, overwrite: bool, as_json: bool) -> None:
    """Fetch what is named, or all; one that fails does not keep the others from coming."""
    from liif_cli.weights import find, registry
    from liif_cli.weights.fetch import fetch

    entries = [find(name) for name in dict.fromkeys(names)] if names else list(registry().entries.values())
    failed = []
    for entry in entries:
        try:
            with _watcher() as watcher:
                fetched = fetch(entry, cache, watcher, overwrite=overwrite)
        except ModelError as error:
            if len(entries) == 1:
                raise
            failed.append(entry.name)
            typer.echo(str(error), err=True)
        else:
            _report(fetched, as_json)
    if failed:
        raise ModelError(f"{len(failed)} of {len(entries)} models not fetched: {', '.join(failed)}")


def _report(fetched: Fetched, as_json: bool) -> None:
    row = {"name": fetched.name, "path": str(fetched.path), "status": fetched.status, "bytes": fetched.bytes}
    line = f"{fetched.name}: {fetched.status}: {fetched.path} ({fetched.bytes:,} bytes)"
    typer.echo(json.dumps(row) if as_json else line)


class _Terminal:
    """Notes as lines on standard error; how far a download has come as a bar, where there is one."""

    def __init__(self, bar: Progress | None) -> None:
        self.bar = bar

    def note(self, text: str) -> None:
        if self.bar is None:
            typer.echo(text, err=True)
        else:  # above the bar, as it is: not markup, not wrapped
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        if self.bar is None:
            return
        task = self.bar.task_ids[0] if self.bar.task_ids else self.bar.add_task("downloading")
        self.bar.update(task, completed=done_bytes, total=total_bytes)


@contextmanager
def _watcher() -> Iterator[Watcher]:
    if not sys.stderr.isatty():
        yield _Terminal(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        yield _Terminal(bar)
