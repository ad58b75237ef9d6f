"""An evaluation to look at: one page of HTML with everything in it, tables, curves and pictures side by side.

The page asks nothing of any network: its style, its script and its pictures are inside, and its own policy forbids
everything else. Pictures are details of a few chosen ones, not whole.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from liif_cli import __version__
from liif_cli.evaluate import Row, Score, Work
from liif_cli.files import atomic_path
from liif_cli.published import Rows
from liif_cli.report.curves import draw_curves
from liif_cli.report.details import Details
from liif_cli.tables import Sheet, seconds, sheets

__all__ = ["MADE_BY", "Details", "write_report"]

MADE_BY = "Made by <code>liif eval</code>"  # what tells a page of ours


def write_report(
    folder: Path,
    rows: Sequence[Row],
    scores: Sequence[Score],
    details: Details,
    published: Mapping[str, Rows] | None = None,
) -> Path:
    """Write ``index.html`` into a folder, in place of an older one; returns its path.

    ``details`` were among the keepers of the evaluation that made the scores. Raises OutputError.
    """
    work, printed = details.work, published or {}
    tables = sheets(rows, work, printed)
    parts = {
        "title": html.escape(_title(work)),
        "lead": html.escape(_lead(rows)),
        "curves": "\n".join(
            draw_curves(dataset.title, rows, printed.get(dataset.title, {})) for dataset in work.datasets
        ).strip(),
        "cell": ", then ".join(
            ["PSNR in decibels", "SSIM (1 is the original itself)"]
            + ["LPIPS (0 is the original itself)"] * any(row.lpips is not None for row in rows)
            + ["seconds per picture"]
        ),
        "tables": "\n".join(_table(sheet, rows, work) for sheet in tables),
        "version": html.escape(__version__),
        "data": _as_script(details.as_json(scores)),
    }
    page = (resources.files("liif_cli.report") / "page.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)  # once: names may look like it
    path = folder / "index.html"
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def _title(work: Work) -> str:
    names = [method.name for method in work.methods]
    sets = _listed([dataset.title for dataset in work.datasets])
    return f"{_listed(names) if len(names) <= 3 else f'{len(names)} methods'} on {sets}"


def _lead(rows: Sequence[Row]) -> str:
    """The result in a sentence: the first model against each data set's best kernel at the smallest scale."""
    scale = min(row.scale for row in rows)
    here = [row for row in rows if row.scale == scale]
    models = [row for row in here if row.kind == "model"]
    kernels = [row for row in here if row.kind == "kernel"]
    if not models or not kernels:
        return ""
    name = models[0].method
    gains = []
    for row in models:
        rivals = [kernel for kernel in kernels if kernel.dataset == row.dataset]
        if row.method == name and rivals:
            best = max(rivals, key=lambda kernel: kernel.psnr)
            if math.isfinite(row.psnr - best.psnr):
                gains.append((row.dataset, row.psnr - best.psnr, best.method))
    if not gains:
        return ""
    one = len({best for _, _, best in gains}) == 1
    said = [
        f"{gain:+.1f} dB on {dataset}".replace("-", "−") + ("" if one else f" ({best})")
        for dataset, gain, best in gains
    ]
    return f"At ×{scale:g}, {name} against {gains[0][2] if one else 'the best interpolation'}: {_listed(said)}."


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _table(sheet: Sheet, rows: Sequence[Row], work: Work) -> str:
    """A data set's table: in a cell the PSNR, below it the SSIM and the time."""
    escape = html.escape
    found = {(row.method, row.scale): row for row in rows if row.dataset == sheet.dataset}
    best = {line.method: line.best for line in sheet.lines if line.metric == "PSNR, dB"}
    count = f"{sheet.images} picture{'s'[: sheet.images != 1]}"
    out = [
        f'<figure class="table"><figcaption><h3>{escape(sheet.dataset)}</h3> {count}</figcaption>',
        '<div class="scroll" tabindex="0" role="region" aria-label="Scores on ' + escape(sheet.dataset) + '"><table>',
        '<thead><tr><th scope="col">Method</th>',
        *(f'<th scope="col">×{scale:g}</th>' for scale in sheet.scales),
        "</tr></thead><tbody>",
    ]
    for method in dict.fromkeys(line.method for line in sheet.lines if not line.published):
        out.append(f'<tr><th scope="row">{escape(method)}</th>')
        for scale, wins in zip(sheet.scales, best[method], strict=True):
            row = found.get((method, scale))
            out.append(_cell(row, wins) if row is not None else "<td></td>")
        out.append("</tr>")
    printed = [line for line in sheet.lines if line.published]
    if printed:
        out.append(f'</tbody><tbody class="printed"><tr><th scope="rowgroup" colspan="{len(sheet.scales) + 1}">')
        out.append("In print</th></tr>")
        for line in printed:
            out.append(f'<tr><th scope="row">{escape(line.method)}</th>')
            out.extend(f"<td>{escape(cell) or '<span aria-hidden=true>–</span>'}</td>" for cell in line.cells)
            out.append("</tr>")
    peak = max((row.peak_memory_bytes for row in found.values()), default=0) / 2**20
    said = [*sheet.notes, f"At most {peak:.0f} MiB were held, by the process or, for models on a GPU, there."]
    out.append("</tbody></table></div>")
    out.append(f"<p>{escape(' '.join(said))}</p></figure>")
    return "".join(out)


def _cell(row: Row, best: bool) -> str:
    psnr = f"{row.psnr:.2f}"
    small = [f"{row.ssim:.4f}"]
    if row.lpips is not None:
        small.append(f"{row.lpips:.4f}")
    small.append(f"{seconds(row)} s")
    strong = f"<strong>{psnr}</strong>" if best else f"<span>{psnr}</span>"
    return f"<td>{strong}{''.join(f'<small>{text}</small>' for text in small)}</td>"


def _as_script(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
