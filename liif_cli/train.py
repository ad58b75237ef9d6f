"""The training loop: step, schedule, averaged weights, checkpoints that resume exactly.

A run is a folder: ``config.json`` (all settings, resolved), ``state.pth`` (everything to go on from), ``log.csv`` and
``model.safetensors`` (what ``liif upscale -m RUN`` reads).
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from liif_cli import __version__, checkpoint
from liif_cli.config import Schedule, TrainConfig, to_mapping
from liif_cli.data import Batch, PictureStore, Sampler
from liif_cli.errors import LiifError, ModelError, UsageError
from liif_cli.files import atomic_path
from liif_cli.models import Model, build
from liif_cli.models.encoders.edsr import ResidualBlock
from liif_cli.models.encoders.rcan import AttentionBlock
from liif_cli.optim import make_optimiser, set_rates

STATE, CONFIG, LOG = "state.pth", "config.json", "log.csv"


class TrainingError(LiifError):
    """A run that cannot go on."""


class Progress(NamedTuple):
    """Where a run is, told after each logged step."""

    iteration: int
    loss: float  # mean since the last report
    rate: float  # learning rate's share of its base
    per_second: float


def rate_factor(schedule: Schedule, iteration: int, iterations: int) -> float:
    """The share of the base rates at an iteration (from 0)."""
    if iteration < schedule.warmup:
        return (iteration + 1) / schedule.warmup
    done = (iteration - schedule.warmup) / max(1, iterations - schedule.warmup)
    if schedule.name == "step":
        return schedule.factor ** sum(done >= milestone for milestone in schedule.milestones)
    return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def start_gently(model: Model, size: float) -> None:
    """Shrink the last convolution of each residual block, so that a deep encoder starts near the identity."""
    if size == 1:
        return
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ResidualBlock | AttentionBlock):
                cast(nn.Conv2d, module.body[2]).weight.mul_(size)


def predict(model: Model, batch: Batch) -> torch.Tensor:
    """The network's answers to a batch's queries: (B, Q, 3)."""
    return model.fold(model.encode(batch.low_res), batch.cell).query(batch.coords)


class Trainer:
    """One run's state and the step that advances it."""

    def __init__(self, config: TrainConfig, store: PictureStore, device: torch.device) -> None:
        if config.optimiser.name not in ("adam", "muon"):
            raise UsageError(f"unknown optimiser {config.optimiser.name!r}: use adam or muon")
        if config.schedule.name not in ("cosine", "step"):
            raise UsageError(f"unknown schedule {config.schedule.name!r}: use cosine or step")
        self.config = config
        self.device = device
        self.sampler = Sampler(store, config.sample, seed=config.seed)
        torch.manual_seed(config.seed)
        self.model = build(config.model).to(device)
        start_gently(self.model, config.residual_start)
        self.optimiser = make_optimiser(self.model, config.optimiser)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.iteration = 0
        self.skipped = 0  # steps left out because of optimiser.skip_loss

    def start_from(self, source: checkpoint.Checkpoint, where: str) -> None:
        """Take the weights of a checkpoint as the beginning. Raises ModelError where the networks differ."""
        if checkpoint.restore(source, where).spec != self.config.model:
            raise ModelError(f"{where}: holds another network than this run trains; use the preset it was trained with")
        state = {name: tensor.float() for name, tensor in source.tensors.items()}
        self.model.load_state_dict(state)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def step(self) -> float:
        """One iteration; returns its loss (L1, on [-1, 1] as the official code has it)."""
        config = self.config
        set_rates(self.optimiser, rate_factor(config.schedule, self.iteration, config.iterations))
        batch = self.sampler.batch(self.iteration, range(config.batch), self.device)
        dtype = {"bfloat16": torch.bfloat16, "float32": None}[config.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            answers = predict(self.model, batch)
        loss = F.l1_loss(answers.float(), batch.high_res) / self.model.deviation
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at iteration {self.iteration}: the run has diverged;"
                " resume from its last checkpoint with a lower learning rate"
            )
        if config.optimiser.skip_loss and value > config.optimiser.skip_loss:
            self.skipped += 1
        else:
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if config.optimiser.clip_norm:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimiser.clip_norm)
            self.optimiser.step()
            self._average()
        self.iteration += 1
        return value

    def _average(self) -> None:
        decay = self.config.ema
        # Early on the average is a plain one, so that the random start is forgotten.
        decay = min(decay, (1 + self.iteration) / (10 + self.iteration)) if decay else 0.0
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def save(self, run: Path) -> None:
        """Write what the run resumes from, then the model it has so far."""
        state = {
            "iteration": self.iteration,
            "skipped": self.skipped,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        with atomic_path(run / STATE, overwrite=True) as temporary:
            torch.save(state, temporary)
        checkpoint.write(run / checkpoint.RUN_MODEL, self.exported(), overwrite=True)

    def exported(self) -> checkpoint.Checkpoint:
        facts = {"training": {**to_mapping(self.config), "iteration": self.iteration, "version": __version__}}
        return checkpoint.Checkpoint(self.config.model, self.average, facts)

    def resume(self, run: Path) -> None:
        """Go on from what :meth:`save` wrote. Raises TrainingError when that cannot be read."""
        try:
            state = torch.load(run / STATE, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average, self.iteration, self.skipped = state["average"], state["iteration"], state["skipped"]
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise TrainingError(f"{run / STATE}: cannot be resumed from: {error}") from None


def run_training(
    trainer: Trainer, run: Path, *, report: Callable[[Progress], None] = lambda progress: None, report_every: int = 20
) -> bool:
    """Train to the configured number of iterations, saving now and then. False when it was asked to stop before."""
    run.mkdir(parents=True, exist_ok=True)
    (run / CONFIG).write_text(json.dumps(to_mapping(trainer.config), indent=2))
    with _stop_signal() as stopped, (run / LOG).open("a", newline="") as log:
        table = csv.writer(log)
        if log.tell() == 0:
            table.writerow(["iteration", "loss", "rate", "seconds"])
        losses: list[float] = []
        since = time.perf_counter()
        while trainer.iteration < trainer.config.iterations:
            losses.append(trainer.step())
            if len(losses) == report_every or trainer.iteration == trainer.config.iterations:
                elapsed = time.perf_counter() - since
                factor = rate_factor(trainer.config.schedule, trainer.iteration - 1, trainer.config.iterations)
                mean = sum(losses) / len(losses)
                table.writerow([trainer.iteration, f"{mean:.6f}", f"{factor:.6f}", f"{elapsed:.3f}"])
                log.flush()
                report(Progress(trainer.iteration, mean, factor, len(losses) / elapsed))
                losses, since = [], time.perf_counter()
            if trainer.iteration % trainer.config.save_every == 0 or stopped():
                trainer.save(run)
                if stopped():
                    return False
        trainer.save(run)
    return True


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and Ctrl-C end the run after the step under way; a second Ctrl-C ends it at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are someone else's
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
