"""Scores as tables: for a terminal, for a README, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from liif_cli import __version__
from liif_cli.evaluate import ModelMethod, Row, Score, Work
from liif_cli.published import Rows

if TYPE_CHECKING:
    from rich.console import Console

_MIB = 2**20
_SOURCES = {
    "files": "the data set's own files",
    "matlab": "MATLAB's bicubic, 8 bits",
    "pil": "PIL's bicubic, 8 bits",
    "torch": "torch's antialiased bicubic, 8 bits",
}
IN_PRINT = "in print"


class Line(NamedTuple):
    """A method's line of one metric in a data set's table; a cell for each scale."""

    method: str
    metric: str
    cells: Sequence[str]
    best: Sequence[bool]
    published: bool = False


class Sheet(NamedTuple):
    """A data set's table."""

    dataset: str
    images: int
    scales: Sequence[float]
    lines: Sequence[Line]
    notes: Sequence[str]


def sheets(
    rows: Sequence[Row], work: Work, published: Mapping[str, Rows] | None = None, *, psnr_only: bool = False
) -> list[Sheet]:
    """One table a data set: methods in their order, each with its metrics, scales across."""
    return [_sheet(dataset.title, rows, work, (published or {}).get(dataset.title, {}), psnr_only)
            for dataset in work.datasets if any(row.dataset == dataset.title for row in rows)]  # fmt: skip


def _sheet(title: str, rows: Sequence[Row], work: Work, printed: Rows, psnr_only: bool) -> Sheet:
    cells = {(row.method, row.scale): row for row in rows if row.dataset == title}
    scales = [scale for scale in work.scales if any(scale == known for _, known in cells)]
    methods = list(dict.fromkeys(method for method, _ in cells))
    metrics = [("PSNR, dB", "psnr", "{:.2f}"), ("SSIM", "ssim", "{:.4f}"), ("LPIPS", "lpips", "{:.4f}")]
    lines = []
    for method in methods:
        for metric, field, form in metrics[: 1 if psnr_only else 3]:
            values = [_value(cells.get((method, scale)), field) for scale in scales]
            if field == "lpips" and all(value is None for value in values):
                continue
            best = [
                value is not None and len(methods) > 1 and value == _best(cells, methods, scale, field)
                for value, scale in zip(values, scales, strict=True)
            ]
            lines.append(Line(method, metric, [_cell(value, form) for value in values], best))
        if not psnr_only:
            found = [cells.get((method, scale)) for scale in scales]
            lines.append(Line(method, "seconds", [seconds(row) for row in found], [False] * len(scales)))
            memory = ["" if row is None else f"{row.peak_memory_bytes / _MIB:.0f}" for row in found]
            lines.append(Line(method, "peak MiB", memory, [False] * len(scales)))
    for method, row in printed.items():
        if any(scale in row for scale in scales):
            texts = [f"{row[scale]:.2f}" if scale in row else "" for scale in scales]
            lines.append(Line(method, IN_PRINT, texts, [False] * len(scales), published=True))
    images = max((row.images for row in cells.values()), default=0)
    return Sheet(title, images, scales, lines, notes(title, rows, work))


def _value(row: Row | None, field: str) -> float | None:
    return None if row is None else getattr(row, field)


def _best(cells: Mapping[tuple[str, float], Row], methods: Sequence[str], scale: float, field: str) -> float:
    values = [value for method in methods if (value := _value(cells.get((method, scale)), field)) is not None]
    return min(values) if field == "lpips" else max(values)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else "inf" if math.isinf(value) else form.format(value)


def seconds(row: Row | None) -> str:
    """Seconds per picture; nothing where there is no row."""
    return "" if row is None else f"{row.seconds:.3f}" if row.seconds < 0.1 else f"{row.seconds:.2f}"


def notes(title: str, rows: Sequence[Row], work: Work) -> list[str]:
    """Sentences that say what was compared with what."""
    (dataset,) = (each for each in work.datasets if each.title == title)
    protocol = work.protocol
    channel = protocol.channel(dataset.rgb)
    if protocol.border is not None:
        border = f"without a border of {protocol.border} pixels"
    else:
        border = f"without a border of {'scale + 6' if dataset.rgb else 'scale'} pixels"
    rounded = {"8bit": "rounded to 8 bits"}.get(protocol.rounding, "not rounded")
    said = [f"Scored on {'luma (Y)' if channel == 'y' else 'RGB'}, {border}, output {rounded}."]
    if dataset.expected and not dataset.is_benchmark:
        count = f"{dataset.expected} pictures, not {len(dataset.truths)}"
        said.append(f"{dataset.title} has {count}, so that nothing in print compares.")
    computed = dict.fromkeys(method.computed for method in work.methods if isinstance(method, ModelMethod))
    if others := [each for each in computed if each != "float32 on cpu"]:
        said.append(f"Computed in {', '.join(others)}.")
    sources: dict[str, list[str]] = {}
    for scale in work.scales:
        sources.setdefault(dataset.source(scale, protocol), []).append(f"x{scale:g}")
    said.append("Inputs: " + "; ".join(f"at {', '.join(s)} {_SOURCES[name]}" for name, s in sources.items()) + ".")
    if protocol.jpeg is not None:
        said.append(f"Each input was saved as JPEG of quality {protocol.jpeg} and read again.")
    kernels = dict.fromkeys(row.method for row in rows if row.dataset == title and row.low_res == "luma")
    if kernels:
        said.append(
            f"{', '.join(kernels)}: computed, as in published tables, on 8-bit luma alone, from inputs reduced by"
            " MATLAB's bicubic without rounding."
        )
    return said


def show(console: Console, tables: Sequence[Sheet]) -> None:
    """Print tables; scales that do not fit beside one another come below."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for sheet in tables:
        names = [line.method for line in sheet.lines]
        longest = max(len(line.metric) for line in sheet.lines)
        name_width = min(max(map(len, names)), max(12, console.width * 2 // 5))
        room = max(1, (console.width - name_width - longest - 4) // 8)
        console.print(
            Text(f"\n{sheet.dataset}", style="bold"),
            Text(f"{sheet.images} picture{'s'[: sheet.images > 1]}", style="dim"),
        )
        for first in range(0, len(sheet.scales), room):
            part = slice(first, first + room)
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
            table.add_column("", max_width=name_width, overflow="fold")
            table.add_column("", style="dim", no_wrap=True)
            for scale in sheet.scales[part]:
                table.add_column(f"x{scale:g}", justify="right", no_wrap=True)
            before = ""
            lines = [line for line in sheet.lines if any(line.cells[part])]
            for number, line in enumerate(lines):
                texts = [
                    Text(text, style="bold green" if best else "dim" if line.metric in ("seconds", "peak MiB") else "")
                    for text, best in zip(line.cells[part], line.best[part], strict=True)
                ]
                name = "" if line.method == before else line.method
                following = lines[number + 1] if number + 1 < len(lines) else line
                ends = following.published != line.published or (not line.published and following.method != line.method)
                table.add_row(
                    Text(name, style="italic" if line.published else ""), line.metric, *texts, end_section=ends
                )
                before = "" if ends else line.method
            console.print(table)
        for sentence in sheet.notes:
            console.print(Text(sentence, style="dim"))


def as_markdown(tables: Sequence[Sheet]) -> str:
    """Tables as a README has them: PSNR, and SSIM where it is there, the best of each scale in bold."""
    parts = []
    for sheet, following in zip(tables, [*tables[1:], None], strict=True):
        header = (
            "| "
            + " | ".join([f"{_escaped(sheet.dataset)}, PSNR in dB", *(f"x{scale:g}" for scale in sheet.scales)])
            + " |"
        )
        lines = [header, "|---" + "|---:" * len(sheet.scales) + "|"]
        for line in sheet.lines:
            if not line.published and line.metric != "PSNR, dB":
                continue
            cells = [f"**{text}**" if best else text for text, best in zip(line.cells, line.best, strict=True)]
            name = f"*{line.method}, {IN_PRINT}*" if line.published else line.method
            lines.append("| " + " | ".join([_escaped(name), *cells]) + " |")
        said = following is not None and following.notes == sheet.notes  # once, below the last one
        parts.append("\n".join(lines) + "\n" + ("" if said else "\n" + " ".join(sheet.notes) + "\n"))
    return "\n".join(parts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def as_json(
    rows: Sequence[Row],
    scores: Sequence[Score],
    work: Work,
    published: Mapping[str, Rows] | None = None,
    left_out: Iterable[Path] = (),
) -> dict[str, Any]:
    """Everything as plain values; what is infinite, between equal pictures, becomes null. ``left_out``: pictures that
    could not be read."""
    content: dict[str, Any] = {
        "rows": [_plain(row) for row in rows],
        "scores": [_plain(each) for each in scores],
        "left_out": list(map(str, left_out)),
        "protocol": work.protocol.as_json(),
        "computed": {method.name: method.computed for method in work.methods if isinstance(method, ModelMethod)},
        "version": __version__,
    }
    if published:
        content["published"] = [
            {"method": method, "dataset": title, "scale": scale, "psnr": value}
            for title, printed in published.items()
            for method, row in printed.items()
            for scale, value in row.items()
        ]
    return content


def _plain(item: Row | Score) -> dict[str, Any]:
    values = {name: _finite(value) for name, value in item._asdict().items()}
    if values["lpips"] is None:
        del values["lpips"]
    return values


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(scores: Sequence[Score]) -> str:
    """One line a picture, under the names of :class:`Score`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Score._fields)
    writer.writerows([["" if value is None else value for value in each] for each in scores])
    return out.getvalue()
