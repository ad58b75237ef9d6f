"""Configurations: frozen dataclasses, filled from presets or files of TOML, closed to anything they do not know."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from liif_cli.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class SampleRule:
    """How training samples are drawn (``data.py``)."""

    low_res_side: int = 48  # pixels a side of the network's input
    scale_min: float = 1.0
    scale_max: float = 4.0
    queries: int = 2304  # pixels of the crop asked in a step
    # A picture is drawn with a probability proportional to its number of pixels to this power: 0 treats all pictures
    # alike, as the official recipe does (its pictures are of one size), 1 all pixels.
    area_power: float = 0.0

    @property
    def largest_crop(self) -> int:
        return round(self.low_res_side * self.scale_max)


@dataclass(frozen=True)
class Optimiser:
    """``adam`` for every parameter, or ``muon`` for the matrices and Adam for the rest (``optim.py``)."""

    name: str = "adam"
    learning_rate: float = 1e-4  # Adam's
    muon_rate: float = 0.004
    clip_norm: float = 0.0  # largest norm of the gradient; 0 leaves it alone
    skip_loss: float = 0.0  # a step whose loss is above is skipped; 0 skips none


@dataclass(frozen=True)
class Schedule:
    """How the learning rates go from their value down: in steps at shares of the run, or along half a cosine."""

    name: str = "cosine"
    warmup: int = 0  # iterations of a linear rise from 0
    final: float = 0.01  # cosine: the share that is left at the end
    milestones: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)  # step: shares of the run
    factor: float = 0.5  # step: multiplied at each


@dataclass(frozen=True)
class TrainConfig:
    """A training run, all of it."""

    model: dict[str, Any]  # the official {"name": ..., "args": {...}}
    iterations: int = 1_000_000
    batch: int = 16
    seed: int = 0
    sample: SampleRule = field(default_factory=SampleRule)
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    ema: float = 0.0  # decay of the averaged weights that are exported; 0 exports the weights themselves
    residual_start: float = 1.0  # size at which the last convolution of each residual block starts; gentler below 1
    precision: str = "float32"
    save_every: int = 1000
    validate_every: int = 0  # iterations; 0 validates at the end only
    description: str = ""


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("liif_cli") / "presets"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_train(name: str, overrides: Iterable[str] = ()) -> TrainConfig:
    """A preset by name, or a TOML file by path, with ``key.path=value`` overrides.

    Raises UsageError for an unknown preset, key or value.
    """
    known = presets()
    if name in known:
        text = (resources.files("liif_cli") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    elif name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{name}: cannot be read: {error.strerror}") from None
    else:
        raise UsageError(f"unknown preset {name!r}: use one of {', '.join(known)}, or the path of a .toml file")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name}: not TOML: {error}") from None
    for override in overrides:
        _override(values, override)
    return from_mapping(TrainConfig, values, name)


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from plain values, checked; unknown keys are refused by name. Raises UsageError."""
    assert dataclasses.is_dataclass(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise UsageError(f"{where}: unknown setting {unknown[0]!r}; known are {', '.join(fields)}")
    filled = {key: _checked(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    absent = [
        key for key, item in fields.items()
        if key not in filled and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if absent:
        raise UsageError(f"{where}: the setting {absent[0]!r} is missing")
    return typing.cast(T, kind(**filled))


def to_mapping(config: Any) -> dict[str, Any]:
    """The inverse: plain values, as JSON and TOML can say them."""
    return dataclasses.asdict(config)


def _checked(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: expected a table of settings, not {value!r}")
        return from_mapping(typing.cast(type[Any], hint), value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: expected a list, not {value!r}")
        return tuple(_checked(typing.get_args(hint)[0], item, where) for item in value)
    if origin in (typing.Union, types.UnionType):
        options = [item for item in typing.get_args(hint) if item is not type(None)]
        return None if value is None else _checked(options[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or hint
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        raise UsageError(f"{where}: expected {getattr(plain, '__name__', plain)}, not {value!r}")
    return value


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, written = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text!r}: write it as key=value, such as optimiser.learning_rate=2e-4")
    try:
        value = tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        value = written  # a word without quotes
    *path, last = key.split(".")
    table = values
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {text!r}: {part!r} is not a table of settings")
    table[last] = value
