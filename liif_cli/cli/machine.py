"""What the options of several commands share: where and within what to compute, and how flags look."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

PANEL = "Model and machine"

# An option without a word for its value, as it takes none.
flag = functools.partial(typer.Option, metavar="")

DeviceOption = Annotated[
    str,
    typer.Option(metavar="NAME", envvar="LIIF_DEVICE", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=PANEL),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        envvar="LIIF_MEMORY",
        help="Most memory to use, such as 4G. \\[default: half of what is free, 4G at most]",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
