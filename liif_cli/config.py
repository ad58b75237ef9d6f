"""Configurations: frozen dataclasses, filled from presets or files of TOML, closed to anything they do not know."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from liif_cli.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class SampleRule:
    """How training samples are drawn (``data.py``).

    ``kind`` is "crops" (the paper's: a crop of a picture, at a random scale), "resized" (the paper's size-varied
    ground truth: the square in the middle of a picture, its truth's size growing with the picture's number) or
    "picture" (pixels of one picture, which is fitted).
    """

    kind: str = "crops"
    low_res_side: int = 48  # pixels a side of the network's input
    queries: int = (
        2304  # pixels of each sample's truth asked in a step; 0 asks them all, where the scale is always the same
    )
    augment: str = "all"  # "all" flips and transposes, "mirror" mirrors left and right, "none"
    # Of crops: the range of scales, and how they are drawn from it: "uniform", or "log", as often between 1 and 2 as
    # between 2 and 4. Then the pictures' chances. A picture is drawn with a probability proportional to
    # its number of pixels to this power: 0 treats all alike, as the official recipe does (its pictures are of one
    # size), 1 all pixels. Of so many candidates the crop with the most detail is taken, for this share of the samples;
    # the others take what was drawn, so that smooth areas are not forgotten.
    scale_min: float = 1.0
    scale_max: float = 4.0
    scale_law: str = "uniform"
    area_power: float = 0.0
    candidates: int = 1
    chosen: float = 1.0
    # Of crops: so large a share of the samples is drawn letters and shapes, half of them unsmoothed (``synthetic.py``).
    synthetic_share: float = 0.0
    # Of crops and resized: so large a share of the inputs was a JPEG file, of a quality from this range.
    jpeg_share: float = 0.0
    jpeg_min: int = 40
    jpeg_max: int = 95
    # Of resized: pixels a side of the first and the last picture's truth, and to what all of them are enlarged again
    # for a network of one scale (0: they are not).
    size_min: int = 32
    size_max: int = 256
    truth_side: int = 0

    @property
    def largest_crop(self) -> int:
        """What each side of a picture must have, in pixels."""
        if self.kind == "picture":
            return 1
        return self.size_max if self.kind == "resized" else round(self.low_res_side * self.scale_max)


@dataclass(frozen=True)
class Optimiser:
    """``adam`` for every parameter, or ``muon`` for the matrices and Adam for the rest (``optim.py``)."""

    name: str = "adam"
    learning_rate: float = 1e-4  # Adam's
    muon_rate: float = 0.004
    clip_norm: float = 0.0  # largest norm of the gradient; 0 leaves it alone
    skip_loss: float = 0.0  # after the warm-up a step whose loss is above is skipped; 0 skips none


@dataclass(frozen=True)
class Schedule:
    """How the learning rates go from their value down: in steps at shares of the run, along half a cosine, or as a
    trapezoid: level, then straight down over the last ``fall`` of the run. A run on the level can be made longer by
    ``--resume`` with more iterations without a restart, which a cosine cannot (Hägele et al., 2024, arXiv:2405.18392).
    """

    name: str = "cosine"
    warmup: int = 0  # iterations of a linear rise from 0
    final: float = 0.01  # cosine, trapezoid: the share that is left at the end
    fall: float = 0.3  # trapezoid: the share of the run over which the rates fall
    milestones: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)  # step: shares of the run
    factor: float = 0.5  # step: multiplied at each


@dataclass(frozen=True)
class Validation:
    """How ``--val`` is scored: the evaluation protocol on these pictures at these scales."""

    every: int = 5000  # iterations; 0 scores at the end only
    scales: tuple[float, ...] = (2.0, 3.0, 4.0)
    pictures: int = 10  # the first so many of the folder; 0 takes all
    crop: int = 0  # only the square of this side in the middle of each picture, which is faster; 0 takes all of it
    # "rgb" with a border of scale + 6, as DIV2K is scored; "y" with a border of scale; "auto": "y" of Set5, Set14, B100
    # and Urban100, which published tables score so, and "rgb" of all else.
    channel: str = "auto"


@dataclass(frozen=True)
class TrainConfig:
    """A training run, all of it."""

    model: dict[str, Any]  # the official {"name": ..., "args": {...}}
    iterations: int = 1_000_000
    batch: int = 16  # samples a step, over all processes
    accumulate: int = 1  # parts a process computes its share of the batch in, one after the other, to save memory
    seed: int = 0
    start: str = ""  # the model, by name or file, whose weights the run begins with; "" are random ones
    teacher: str = ""  # the model, by name or file, whose answers are learned; "" learns the pictures themselves
    teacher_share: float = 1.0  # the truth that is learned is so much the teacher's answers, the rest the pictures' own
    sample: SampleRule = field(default_factory=SampleRule)
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    validation: Validation = field(default_factory=Validation)
    ema: float = 0.0  # decay of the averaged weights that are exported; 0 exports the weights themselves
    residual_start: float = 1.0  # size at which the last convolution of each residual block starts; gentler below 1
    precision: str = "float32"  # of the network's arithmetic: "float32", "bfloat16" or "auto"
    compile: str = "auto"  # torch.compile: "auto" (on CUDA), "on" or "off"
    save_every: int = 1000
    log_every: int = 20
    description: str = ""


LONGEST_CROP = 2**16  # more than any training picture has


def _at_least(where: str, value: float, least: float) -> None:
    if not least <= value < math.inf:  # also refuses what is not a number
        raise UsageError(f"{where} = {value!r}: it must be {'finite' if value > least else f'at least {least:g}'}")


def _one_of(where: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{where} = {value!r}: use one of {', '.join(known)}")


def check(config: TrainConfig) -> TrainConfig:
    """The configuration itself, if its values make sense. Raises UsageError naming the first that does not."""
    sample, optimiser, schedule, validation = config.sample, config.optimiser, config.schedule, config.validation
    _one_of("sample.kind", sample.kind, ("crops", "resized", "picture"))
    _one_of("sample.augment", sample.augment, ("all", "mirror", "none"))
    _one_of("sample.scale_law", sample.scale_law, ("uniform", "log"))
    _one_of("optimiser.name", optimiser.name, ("adam", "muon"))
    _one_of("schedule.name", schedule.name, ("cosine", "step", "trapezoid"))
    _one_of("validation.channel", validation.channel, ("auto", "rgb", "y"))
    _one_of("precision", config.precision, ("auto", "float32", "bfloat16"))
    _one_of("compile", config.compile, ("auto", "on", "off"))
    counts = {"iterations": config.iterations, "batch": config.batch, "accumulate": config.accumulate,
              "save_every": config.save_every, "log_every": config.log_every,
              "sample.low_res_side": sample.low_res_side, "sample.candidates": sample.candidates,
              "sample.size_min": sample.size_min}  # fmt: skip
    for where, count in counts.items():
        _at_least(where, count, 1)
    others = {"seed": config.seed, "sample.queries": sample.queries, "sample.area_power": sample.area_power,
              "sample.chosen": sample.chosen, "sample.synthetic_share": sample.synthetic_share,
              "sample.jpeg_share": sample.jpeg_share, "sample.truth_side": sample.truth_side,
              "optimiser.learning_rate": optimiser.learning_rate,
              "optimiser.muon_rate": optimiser.muon_rate, "optimiser.clip_norm": optimiser.clip_norm,
              "optimiser.skip_loss": optimiser.skip_loss, "schedule.warmup": schedule.warmup,
              "schedule.final": schedule.final, "schedule.fall": schedule.fall, "schedule.factor": schedule.factor,
              "validation.every": validation.every, "validation.pictures": validation.pictures,
              "validation.crop": validation.crop, "ema": config.ema,
              "teacher_share": config.teacher_share, "residual_start": config.residual_start}  # fmt: skip
    for where, value in others.items():
        _at_least(where, value, 0)
    _at_least("sample.scale_min", sample.scale_min, 1)
    _at_least("sample.scale_max", sample.scale_max, sample.scale_min)
    _at_least("sample.size_max", sample.size_max, sample.size_min)
    if sample.kind == "crops" and sample.low_res_side * sample.scale_max > LONGEST_CROP:
        raise UsageError(
            f"sample.low_res_side = {sample.low_res_side} and sample.scale_max = {sample.scale_max:g}: crops would have"
            f" more than {LONGEST_CROP} pixels a side; make one of them smaller"
        )
    if not validation.scales:
        raise UsageError("validation.scales = []: name at least one; without --val nothing is scored")
    for scale in validation.scales:
        _at_least("validation.scales", scale, 1)
    if schedule.fall > 1:
        raise UsageError(f"schedule.fall = {schedule.fall!r}: it is a share of the run, 1 at most")
    if sample.chosen > 1:
        raise UsageError(f"sample.chosen = {sample.chosen!r}: it is a share of the samples, 1 at most")
    for where, share in (("sample.synthetic_share", sample.synthetic_share), ("sample.jpeg_share", sample.jpeg_share)):
        if share > 1:
            raise UsageError(f"{where} = {share!r}: it is a share of the samples, 1 at most")
    if sample.synthetic_share and sample.kind != "crops":
        raise UsageError(f"sample.synthetic_share: goes with sample.kind=crops, not with {sample.kind}")
    _at_least("sample.jpeg_min", sample.jpeg_min, 1)
    _at_least("sample.jpeg_max", sample.jpeg_max, sample.jpeg_min)
    if sample.jpeg_max > 100:
        raise UsageError(f"sample.jpeg_max = {sample.jpeg_max}: JPEG has qualities up to 100")
    if config.teacher_share > 1:
        raise UsageError(f"teacher_share = {config.teacher_share!r}: it is a share of the truth, 1 at most")
    if sample.kind == "picture" and sample.augment != "none":
        raise UsageError(f"sample.augment = {sample.augment!r}: one picture is fitted as it stands; use none")
    if config.seed >= 2**63:
        raise UsageError(f"seed = {config.seed}: it must be below 2**63")
    if config.ema >= 1:
        raise UsageError(f"ema = {config.ema!r}: it must be below 1, such as 0.999")
    if config.batch % config.accumulate:
        raise UsageError(f"accumulate = {config.accumulate}: a batch of {config.batch} does not divide into that many")
    if sample.queries == 0 and not _one_size(sample):
        raise UsageError(
            "sample.queries = 0 asks every pixel, for which all samples of a batch must be of one size:"
            " give the number of queries, or one scale (sample.scale_min = sample.scale_max)"
        )
    return config


def _one_size(sample: SampleRule) -> bool:
    if sample.kind == "crops":
        return sample.scale_min == sample.scale_max
    return sample.kind == "picture" or bool(sample.truth_side) or sample.size_min == sample.size_max


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("liif_cli") / "presets"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_train(name: str, overrides: Iterable[str] = ()) -> TrainConfig:
    """A preset by name, or a TOML file by path, with ``key.path=value`` overrides.

    A file that says ``extends = "PRESET"`` begins with that preset's settings (``extends = "./other.toml"``: with
    another file's, seen from its own folder). Its tables are merged into the inherited ones, but for a table with a
    ``name`` of its own: another network, optimiser or schedule replaces the whole of the inherited one.

    Raises UsageError for an unknown preset, key or value.
    """
    values = _read(name, ())
    for override in overrides:
        _override(values, override)
    return check(from_mapping(TrainConfig, values, name))


def _read(name: str, children: tuple[str, ...]) -> dict[str, Any]:
    if name in children:
        raise UsageError(f"{name}: extends itself, by way of {' and '.join(children)}")
    known = presets()
    if name in known:
        text = (resources.files("liif_cli") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    elif name.endswith((".toml", ".json")):
        try:
            text = Path(name).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:  # the latter of what is no text, in the file or in its name
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise UsageError(f"{name}: cannot be read: {reason}") from None
    else:
        raise UsageError(
            f"unknown preset {name!r}; {_meant(name, known)}use one of {', '.join(known)}, or the path of a .toml file"
        )
    try:
        # A run's own config.json trains the same again.
        values: dict[str, Any] = json.loads(text) if name.endswith(".json") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name}: not {name.rpartition('.')[2].upper()}: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{name}: expected a table of settings")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UsageError(f"{name}: extends = {parent!r}: name one preset or file")
    if parent not in known and name not in known:
        parent = os.path.normpath(Path(name).parent / parent)
    return _merged(_read(parent, (*children, name)), values)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` laid over ``base``, table by table; a table that names its own kind replaces the other."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and "name" not in value:
            result[key] = _merged(below, value)
        else:
            result[key] = value
    return result


def _meant(text: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, known, n=1)
    return f"did you mean {near[0]}? " if near else ""


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from plain values, checked; unknown keys are refused by name. Raises UsageError."""
    assert dataclasses.is_dataclass(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    unknown = [key for key in values if key not in fields]
    if unknown:
        meant = _meant(unknown[0], list(fields))
        raise UsageError(f"{where}: unknown setting {unknown[0]!r}; {meant}known are {', '.join(fields)}")
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


_KINDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", dict: "a table of settings"}


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
    if isinstance(value, int) and abs(value) > 2**64:
        raise UsageError(f"{where}: {str(value)[:20]}... is too large a number")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():  # 1e5 means a number of iterations as well
        return int(value)
    plain = origin or hint
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        raise UsageError(f"{where}: expected {_KINDS.get(plain, plain)}, not {value!r}")
    return value


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, written = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text!r}: write it as key=value, such as optimiser.learning_rate=2e-4")
    try:
        value = tomllib.loads(f"value = {written}")["value"]
    except (ValueError, RecursionError):
        value = written  # a word without quotes
    *path, last = key.split(".")
    table = values
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {text!r}: {part!r} is not a table of settings")
    table[last] = value
