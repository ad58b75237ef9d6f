"""What models there are, as rows to print: the registry's, in its order, then the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from liif_cli.errors import ModelError
from liif_cli.weights import find
from liif_cli.weights.cache import Place, Record, bundled_path, cached_names, read_record
from liif_cli.weights.registry import Entry, Scores, registry

_HEADINGS = ("NAME", "WHERE", "SIZE", "SCORES, dB", "LICENCE")


def look(names: list[str], folder: Path) -> list[dict[str, Any]]:
    """One row a model, as JSON can say it: all, or those named. Does not read the models themselves.

    Raises ModelError for a name that is neither in the registry nor in the cache `folder`.
    """
    known = registry()
    own = [name for name in cached_names(folder) if name not in known.entries]
    wanted = [name if name in own else find(name).name for name in names] or [*known.entries, *own]
    rows = []
    for name in wanted:
        entry = known.find(name)
        row = _own_row(name, folder) if entry is None else _registry_row(entry, folder)
        if row is not None:
            rows.append(row)
    return rows


def as_table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as aligned lines below their headings."""
    cells = [_HEADINGS, *map(_cells, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADINGS))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _registry_row(entry: Entry, folder: Path) -> dict[str, Any]:
    place = Place(folder, entry.name)
    path, size, where = None, entry.file.bytes, "not fetched"
    if entry.bundled:
        path, where = bundled_path(entry), "bundled"
    elif record := _record(place):
        path, size, where = place.model, record.bytes, "cached"
    return {
        "name": entry.name,
        "aliases": [alias for alias, name in registry().aliases.items() if name == entry.name],
        "where": where,
        "path": None if path is None else str(path),
        "bytes": size,
        "parameters": entry.parameters,
        "network": entry.network,
        "summary": entry.summary,
        "licence": entry.licence,
        "licence_note": entry.licence_note,
        "source": entry.source,
        "training_data": entry.training_data,
        "scored": entry.scored,
        "scores": {data_set: dict(row) for data_set, row in entry.scores.items()},
    }


def _own_row(name: str, folder: Path) -> dict[str, Any] | None:
    place = Place(folder, name)
    record = _record(place)
    if record is None:
        return None
    return {
        "name": name,
        "aliases": [],
        "where": "yours",
        "path": str(place.model),
        "bytes": record.bytes,
        "parameters": record.parameters,
        "network": record.network,
        "summary": "",
        "licence": "",
        "licence_note": "",
        "source": record.source,
        "training_data": "",
        "scored": "",
        "scores": {},
    }


def _record(place: Place) -> Record | None:
    """A damaged record must not hide the other models; `--verify` tells of it."""
    try:
        return read_record(place)
    except ModelError:
        return None


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    aliases = f" ({', '.join(row['aliases'])})" if row["aliases"] else ""
    size = row["bytes"]
    shown = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
    return row["name"] + aliases, row["where"], shown, _short(row["scores"]), row["licence"] or "not stated"


def _short(scores: Scores) -> str:
    """The first data set's scores at x2 to x4, which every paper has."""
    for data_set, row in scores.items():
        return f"{data_set} " + " ".join(f"{scale} {row[scale]:.2f}" for scale in ("x2", "x3", "x4") if scale in row)
    return "not stated"
