"""Scores in print, to be shown beside one's own: PSNR in dB by the published protocol (`protocol.py`)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

Rows = Mapping[str, Mapping[float, float]]  # method: {scale: PSNR}


@cache
def _all() -> Mapping[str, Rows]:
    text = (resources.files("liif_cli") / "published.toml").read_text(encoding="utf-8")
    return {
        data_set: {method: {float(scale): score for scale, score in row.items()} for method, row in rows.items()}
        for data_set, rows in tomllib.loads(text).items()
    }


def published(title: str) -> Rows:
    """What is in print for a data set, by its title; nothing for one that is not known."""
    return _all().get(title, {})
