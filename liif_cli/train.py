"""The training loop: step, schedule, averaged weights, checkpoints that resume exactly.

A run is a folder:

    config.json         all settings, resolved; `liif train RUN/config.json` trains the same again
    state.pth           everything to go on from
    model.safetensors   the model so far, what `liif upscale -m RUN` reads
    teacher.safetensors the model whose answers are learned, where there is one
    log.csv             iteration, loss, learning rate's share, seconds, and the share of them that waited for data and
                        for the teacher
    validation.csv      iteration and PSNR at each scale, where there are pictures to validate on
    sample.png          a crop of one of them: bicubic, the model's, the truth

What a step draws depends on the seed and the step's number alone, so a run that was stopped and resumed computes what
one that never stopped does. In several processes each computes its share of the same global batch.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liif_cli import __version__, checkpoint
from liif_cli.compiled import Compiled
from liif_cli.config import Schedule, TrainConfig, to_mapping
from liif_cli.data import RUN_STATE, Batch, PictureStore, Sampler
from liif_cli.distil import Taught
from liif_cli.distributed import Processes
from liif_cli.errors import LiifError, MemoryBudgetError, ModelError, UsageError
from liif_cli.files import atomic_path, cannot_write
from liif_cli.models import Model, build
from liif_cli.models.base import memory_format
from liif_cli.models.encoders.edsr import ResidualBlock
from liif_cli.models.encoders.rcan import AttentionBlock
from liif_cli.models.encoders.rdn import DenseBlock
from liif_cli.models.growth import grow
from liif_cli.optim import make_optimiser, set_rates
from liif_cli.out_of_memory import is_out_of_memory
from liif_cli.upscaler import choose_precision
from liif_cli.validate import Scores, Validator, write_png

STATE, CONFIG, LOG, VALIDATION, SAMPLE = RUN_STATE, "config.json", "log.csv", "validation.csv", "sample.png"
# Steps after which processes on GPUs agree whether to stop: a launcher that is told to kills them after 30 seconds.
AGREE_EVERY = 5
MOST_SKIPPED = 100  # steps in a row that optimiser.skip_loss may leave out
TEACHER = "teacher.safetensors"
SAME_EVENT_S = 1.0  # a signal that comes again within this time tells of the same event
STOPPING = b"\nliif: stopping after this step, then saving; the same signal again stops at once, without saving\n"

REMEDY = (
    "the run has diverged, and nothing was saved since its last checkpoint; begin one with that, if there is one, as"
    " --start, and with a lower optimiser.learning_rate and optimiser.muon_rate, or with optimiser.clip_norm=1"
)


class TrainingError(LiifError):
    """A run that cannot go on."""


class Progress(NamedTuple):
    """Where a run is, told after each logged step."""

    iteration: int
    loss: float  # mean since the last report
    rate: float  # learning rate's share of its base
    per_second: float
    waited: float  # share of the time that was spent waiting for data


class Watcher(Protocol):
    """Is told how a run goes."""

    def progress(self, progress: Progress) -> None:
        """After each ``log_every`` iterations."""

    def scored(self, iteration: int, scores: Scores) -> None:
        """After each validation."""

    def note(self, text: str) -> None:
        """When something else is worth saying."""


class Unwatched:
    """Tells nobody."""

    def progress(self, progress: Progress) -> None:
        pass

    def scored(self, iteration: int, scores: Scores) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def rate_factor(schedule: Schedule, iteration: int, iterations: int) -> float:
    """The share of the base rates at an iteration (from 0)."""
    if iteration < schedule.warmup:
        return (iteration + 1) / schedule.warmup
    done = (iteration - schedule.warmup) / max(1, iterations - schedule.warmup)
    if schedule.name == "step":
        # Shares of the whole run, as the official milestones are; the millionth is for shares that are no binary
        # fractions.
        return schedule.factor ** sum(iteration >= share * iterations - 1e-6 for share in schedule.milestones)
    if schedule.name == "trapezoid":
        left = min(1.0, max(0.0, (iterations - iteration) / max(1.0, schedule.fall * iterations)))
    else:
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return schedule.final + (1 - schedule.final) * left


def start_gently(model: Model, size: float) -> None:
    """Shrink the last convolution of each residual block, so that a deep encoder starts near the identity. Raises
    UsageError where there is none."""
    if size == 1:
        return
    last = [
        module.LFF if isinstance(module, DenseBlock) else cast(nn.Conv2d, module.body[2])
        for module in model.modules()
        if isinstance(module, ResidualBlock | AttentionBlock | DenseBlock)
    ]
    if not last:
        raise UsageError(f"residual_start = {size:g}: this network has no residual blocks; leave it out")
    with torch.no_grad():
        for convolution in last:
            convolution.weight.mul_(size)


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What the network computes in beside float32; None for nothing. "auto" is bfloat16 where it is faster."""
    if precision == "auto":
        if device.type == "cuda":
            faster = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            faster = device.type == "cpu" and choose_precision("auto", device) == torch.bfloat16
        return torch.bfloat16 if faster else None
    return torch.bfloat16 if precision == "bfloat16" else None


class Answers(nn.Module):
    """The model from a batch to its answers, as one module: what is compiled and shared between processes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, low_res: Tensor, coords: Tensor, cell: Tensor) -> Tensor:
        """(B, 3, h, w), (B, Q, 2), (B, 2) to (B, Q, 3)."""
        low_res = low_res.contiguous(memory_format=memory_format(low_res.device))
        return self.model.fold(self.model.encode(low_res), cell).query(coords)


class Trainer:
    """One run's state and the step that advances it.

    In several processes every one has a Trainer of its own, on its own device, and they step together.
    """

    def __init__(
        self,
        config: TrainConfig,
        store: PictureStore,
        device: torch.device,
        *,
        processes: Processes | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.processes = processes or Processes()
        self.watcher = watcher or Unwatched()
        compiled = (lambda function: Compiled(function, self.watcher.note)) if self._compiles else None
        self.sampler = Sampler(store, config.sample, seed=config.seed, compiled=compiled)
        self._source: Sampler | Taught = self.sampler
        self.numbers = self.processes.share(config.batch)
        self.parts = config.accumulate
        if len(self.numbers) % self.parts:
            raise UsageError(
                f"accumulate = {self.parts}: a process's {len(self.numbers)} samples do not divide into so many parts"
            )
        torch.manual_seed(config.seed)
        self.model = network(config).to(device)
        self.dtype = None if self.model.needs_float32 else autocast_type(config.precision, device)
        self.model = self.model.to(memory_format=memory_format(device))  # type: ignore[call-overload]
        start_gently(self.model, config.residual_start)
        self.optimiser = make_optimiser(self.model, config.optimiser)
        self.average = self._weights()
        self.iteration = 0
        self.skipped = 0  # steps left out because of optimiser.skip_loss
        self._skipped_in_a_row = 0
        self.waited = 0.0  # seconds
        self.scores: dict[str, dict[str, float]] = {}  # of the last validation, by its name and the scale
        self.scored = [0, ""]  # at which iteration that was, and which validation
        self._batches: Iterator[Batch] | None = None
        self._losses: list[Tensor] = []  # of steps whose loss nobody has looked at yet
        self._network = self._prepared()

    def _prepared(self) -> nn.Module:
        # Starting kernels one by one takes longer than they do. Gradients do not outlive the next start of a graph.
        graphs = self.device.type == "cuda" and self.processes.world == self.parts == 1
        network = self._compiled(Answers(self.model), graphs=graphs)
        if self.processes.world > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            # The only buffers are constants.
            network = nn.parallel.DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)
        return network

    @property
    def _compiles(self) -> bool:
        return self.config.compile == "on" or (self.config.compile == "auto" and self.device.type == "cuda")

    def _compiled(self, network: nn.Module, *, graphs: bool = False) -> nn.Module:
        return _Compiled(network, self.watcher, graphs=graphs) if self._compiles else network

    def start_from(self, source: checkpoint.Checkpoint, where: str) -> None:
        """Take the weights of a checkpoint as the beginning, as ``begin_with``."""
        begin_with(self.model, source, where)
        self.average = self._weights()

    def learn_from(self, source: checkpoint.Checkpoint, where: str) -> None:
        """Take a model's answers for the truth, or for a share of it (``distil.py``). Raises UsageError as
        ``teacher_of``."""
        teacher = teacher_of(self.config, source, where)
        dtype = None if teacher.needs_float32 else autocast_type(self.config.precision, self.device)
        teacher = teacher.eval().to(self.device, memory_format=memory_format(self.device))  # type: ignore[call-overload]
        answers = self._compiled(Answers(teacher))
        self._source = Taught(self.sampler, answers, dtype, parts=self.parts, share=self.config.teacher_share)

    def step(self) -> None:
        """One iteration. Its loss is L1 on [-1, 1], as the official code has it; :meth:`losses` tells it.

        Raises TrainingError, here or in :meth:`losses`, when the loss is not a number.
        """
        cudnn = torch.backends.cudnn
        before, cudnn.benchmark = cudnn.benchmark, True  # every step convolves the same shapes
        try:
            self._step()
        finally:
            cudnn.benchmark = before

    def _step(self) -> None:
        config = self.config
        set_rates(self.optimiser, rate_factor(config.schedule, self.iteration, config.iterations))
        batch = self._next_batch()
        self.optimiser.zero_grad(set_to_none=True)
        # Asking a GPU for a number means waiting for it: where no step may be skipped, losses are looked at when they
        # are logged.
        watched = self.device.type == "cpu" or config.optimiser.skip_loss > 0
        told: Callable[[], float] | None = None
        total = torch.zeros((), device=self.device)
        for number in range(self.parts):
            part = Batch(*(tensor.chunk(self.parts)[number] for tensor in batch))
            more = number + 1 < self.parts
            # Processes exchange gradients once a step, with its last part.
            apart = self._network.no_sync() if more and self.processes.world > 1 else contextlib.nullcontext()  # type: ignore[operator]
            with apart:
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    answers = self._network(part.low_res, part.coords, part.cell)
                loss = F.l1_loss(answers.float(), part.high_res) / self.model.deviation / self.parts
                total += loss.detach()
                if watched and not more:
                    total = self.processes.mean(total)
                    told = _on_its_way(total)
                loss.backward()  # type: ignore[no-untyped-call]
        self._losses.append(total)
        if told is not None:
            value = told()
            self._finite(value, self.iteration)
            # Not before the warm-up is over: an untrained network's loss says how bright the pictures are, no more.
            skip_above = config.optimiser.skip_loss if self.iteration >= config.schedule.warmup else 0.0
            if skip_above and value > skip_above:
                self.skipped += 1
                self._skipped_in_a_row += 1
                if self._skipped_in_a_row == MOST_SKIPPED:
                    raise TrainingError(
                        f"the last {MOST_SKIPPED} steps, to iteration {self.iteration}, were all left out for a loss"
                        f" above optimiser.skip_loss = {skip_above:g} ({value:.3g}), so nothing is learned any more: if"
                        " the pictures are as hard as that, raise it or --set optimiser.skip_loss=0"
                    )
                self.iteration += 1
                return
            self._skipped_in_a_row = 0
        if config.optimiser.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimiser.clip_norm)
        self.optimiser.step()
        self._average()
        self.iteration += 1

    def losses(self) -> list[float]:
        """The losses of the steps since this was last asked. Raises TrainingError when one is not a number, or when
        the weights have ceased to be."""
        if not self._losses:
            return []
        first = self.iteration - len(self._losses)
        values: list[float] = self.processes.mean(torch.stack(self._losses)).tolist()
        self._losses.clear()
        for number, value in enumerate(values):
            self._finite(value, first + number)
        self._check_weights()
        return values

    def _check_weights(self) -> None:
        # A ReLU can hide what is not a number from the loss.
        norms = torch._foreach_norm([value.detach() for value in self.model.parameters()])
        if not bool(torch.stack(norms).isfinite().all()):
            raise TrainingError(f"weights are not numbers any more at iteration {self.iteration}: {REMEDY}")

    def _finite(self, value: float, iteration: int) -> None:
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} at iteration {iteration}: {REMEDY}")

    def _next_batch(self) -> Batch:
        since = time.perf_counter()
        if self._batches is None:
            self._batches = self._source.batches(self.iteration, self.numbers, self.device)
        batch = next(self._batches)
        self.waited += time.perf_counter() - since
        return batch

    def _weights(self) -> dict[str, Tensor]:
        """What is exported, to begin with: copies of the weights, to be averaged, or the weights themselves."""
        own = self.model.state_dict()
        return {name: value.clone() for name, value in own.items()} if self.config.ema else own

    def _average(self) -> None:
        if not self.config.ema:
            return
        # Early on the average is a plain one, so that the random start is forgotten.
        decay = min(self.config.ema, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            averages, values = list(self.average.values()), list(self.model.state_dict().values())
            torch._foreach_lerp_(averages, values, 1 - decay)

    def save(self, run: Path) -> None:
        """Write what the run resumes from, then the model it has so far. The first process does, for all."""
        self._check_before_saving()
        if not self.processes.first:
            return
        state = {
            "iteration": self.iteration,
            "skipped": self.skipped,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "scores": self.scores,
            "scored": self.scored,
            "pictures": self._pictures(),
        }
        with atomic_path(run / STATE, overwrite=True) as temporary, temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # what torch makes of an error of the file
                raise cannot_write(run / STATE, error.__context__ or error) from error
        checkpoint.write(run / checkpoint.RUN_MODEL, self.exported(), overwrite=True)

    def _check_before_saving(self) -> None:
        first = self.iteration - len(self._losses)
        for number, loss in enumerate(self._losses):
            self._finite(float(loss), first + number)
        self._check_weights()

    def _pictures(self) -> str:
        """Tells one set of pictures from another, roughly: by their number and sizes."""
        return hashlib.sha256(json.dumps(list(self.sampler.store.sizes)).encode()).hexdigest()

    def exported(self) -> checkpoint.Checkpoint:
        """The model so far, with the facts about it."""
        training = {**to_mapping(self.config), "iteration": self.iteration, "version": __version__}
        facts = {"training": training, **({"scores": self.scores} if self.scored[0] == self.iteration else {})}
        return checkpoint.Checkpoint(self.config.model, self.average, facts)

    def resume(self, run: Path) -> None:
        """Go on from what :meth:`save` wrote. Raises TrainingError when that cannot be read."""
        try:
            state = torch.load(run / STATE, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average = state["average"] if self.config.ema else self._weights()
            self.iteration, self.skipped = state["iteration"], state["skipped"]
            self.scores, self.scored = state.get("scores", {}), state.get("scored", [0, ""])
            same_pictures = state.get("pictures") == self._pictures()
        except (OSError, KeyError, ValueError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise TrainingError(
                f"{run / STATE}: cannot be resumed from: {reason}; train onwards from the run's model with --start"
                f" {run} and another folder (-o)"
            ) from None
        self._batches = None
        if not same_pictures:
            self.watcher.note("the pictures are not those that the run began with; it goes on with these")

    def is_scored_by(self, validator: Validator) -> bool:
        """Whether this validation was done with the weights as they are."""
        return self.scored == [self.iteration, validator.identity]

    def validate(self, validator: Validator, run: Path) -> Scores:
        """Score the averaged weights, keep the scores for the export, and write a comparison into the run."""
        model = checkpoint.restore(self.exported(), "this run")
        try:
            scores = validator.scores(model, self.device)
        except MemoryBudgetError as error:
            raise MemoryBudgetError(
                f"too little memory to score {validator.name}, and the run is saved; go on by --resume with a smaller"
                " --set validation.crop=512"
            ) from error
        self.scores = {validator.name: {scale: round(value, 3) for scale, value in scores.psnr.items()}}
        self.scored = [self.iteration, validator.identity]
        write_png(validator.comparison(model, self.device), run / SAMPLE)
        return scores


def network(config: TrainConfig) -> Model:
    """The network of a configuration. Raises UsageError for one that would be trained by samples it is not made for,
    and ModelError as ``build``."""
    model, rule = build(config.model), config.sample
    if model.holds_picture != (rule.kind == "picture"):
        fit = "sample.kind=picture --set sample.augment=none" if model.holds_picture else "sample.kind=crops"
        raise UsageError(f"sample.kind = {rule.kind!r}: this network would learn nothing from that; use --set {fit}")
    if config.teacher and rule.jpeg_share:
        raise UsageError(
            "sample.jpeg_share: a teacher answers what it sees, JPEG's traces as well; leave one of both out"
        )
    scale = model.native_scale
    if scale is not None:
        side = rule.low_res_side * scale
        if rule.kind == "crops" and {rule.scale_min, rule.scale_max} != {scale}:
            fit = f"sample.scale_min={scale} --set sample.scale_max={scale}"
            raise UsageError(f"this network paints at x{scale} only; train it with --set {fit}")
        if rule.kind == "resized" and rule.truth_side != side:
            raise UsageError(f"this network paints at x{scale} only; train it with --set sample.truth_side={side}")
    return model


def begin_with(model: Model, source: checkpoint.Checkpoint, where: str) -> None:
    """Give a model the weights of a checkpoint; those of a smaller decoder are grown. Raises ModelError where the
    networks differ otherwise."""
    given, own = checkpoint.restore(source, where), model.state_dict()
    state = given.state_dict()
    same = {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in own.items()}
    if same and _beside_shapes(given) != _beside_shapes(model):
        raise ModelError(
            f"{where}: its network is computed otherwise than the one that this run trains (local_ensemble, res_scale);"
            " use the preset it was trained with"
        )
    if same:
        model.load_state_dict(state)
    elif not grow(given, model):
        raise ModelError(
            f"{where}: holds another network than this run trains, and not a smaller decoder of the same encoder;"
            " use the preset it was trained with"
        )


def _beside_shapes(model: Model) -> list[object]:
    """What of a network its tensors' shapes do not tell."""
    scales = [module.res_scale for module in model.modules() if hasattr(module, "res_scale")]
    return [type(model), getattr(model, "local_ensemble", None), scales]


def teacher_of(config: TrainConfig, source: checkpoint.Checkpoint, where: str) -> Model:
    """The model of a checkpoint, to teach a run. Raises UsageError where it cannot answer everything."""
    teacher = checkpoint.restore(source, where)
    if config.sample.kind == "picture":
        raise UsageError("a recipe that fits one picture has no use for a teacher; leave it out")
    if teacher.holds_picture:
        raise UsageError(f"{where}: holds one fitted picture and answers about no other; name another teacher")
    if teacher.native_scale is not None:
        raise UsageError(f"{where}: paints at x{teacher.native_scale} only; a teacher answers at any scale")
    return teacher


def _on_its_way(number: Tensor) -> Callable[[], float]:
    """A number, from a GPU once what is asked of it before this has been done: not what is asked after."""
    if number.device.type != "cuda":
        return lambda: float(number)
    host = torch.empty((), dtype=number.dtype, pin_memory=True)
    host.copy_(number, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(number.device))

    def arrived() -> float:
        event.synchronize()
        return float(host)

    return arrived


class _Compiled(nn.Module):
    """A module by way of torch.compile, or as it is where that cannot be done here."""

    def __init__(self, module: nn.Module, watcher: Watcher, *, graphs: bool) -> None:
        super().__init__()
        self.module = module
        self.call = Compiled(module, watcher.note, graphs=graphs, prove=self._back)

    def forward(self, *arguments: Tensor) -> Tensor:
        return cast(Tensor, self.call(*arguments))

    def _back(self, answers: Tensor) -> None:
        """The way back is compiled when it is first gone; not by way of DDP's hooks."""
        if torch.is_grad_enabled():
            trained = [value for value in self.module.parameters() if value.requires_grad]
            torch.autograd.grad(answers.float().sum(), trained, allow_unused=True)


def run_training(trainer: Trainer, run: Path, *, validator: Validator | None = None) -> int | None:
    """Train to the configured number of iterations, saving and validating now and then.

    The number of the signal (Ctrl-C's, SIGTERM or SIGHUP) when it was asked to stop before: the run has been saved
    then, after the step under way. Who asks again, and not at once, is left to whoever handled signals before.

    Raises TrainingError when it diverges, MemoryBudgetError where a step needs more memory than there is.
    """
    config, processes = trainer.config, trainer.processes
    if processes.first:
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(run, error) from error
        with atomic_path(run / CONFIG, overwrite=True) as temporary:
            temporary.write_text(json.dumps(to_mapping(config), indent=2) + "\n")
    every = config.validation.every
    on_cpu = trainer.device.type == "cpu"
    with _stop_signal(first=processes.first) as asked, _Log(run, trainer) as log:
        came = trainer.iteration >= config.iterations or (every > 0 and trainer.iteration % every == 0)
        if validator is not None and trainer.iteration and came and not trainer.is_scored_by(validator):
            log.scores(validator, run)  # was stopped, or failed, when it came to that
            trainer.save(run)
        while trainer.iteration < config.iterations:
            _step(trainer)
            iteration = trainer.iteration
            last = iteration == config.iterations
            if iteration % config.log_every == 0 or last:
                log.losses()
            # All processes stop at the same step; to agree, GPUs have to wait for one another.
            together = on_cpu or processes.world == 1 or iteration % AGREE_EVERY == 0
            stop = together and processes.any(bool(asked), trainer.device)
            if stop:
                log.losses()  # of the steps since the last ones
            due = validator if not stop and (last or (every and iteration % every == 0)) else None
            if stop or last or due or iteration % config.save_every == 0:
                trainer.save(run)  # before the scores, which may fail
            if due:
                log.scores(due, run)
                trainer.save(run)
            if stop and not (last and validator is None):
                return asked[0] if asked else signal.SIGTERM
    return None


def _step(trainer: Trainer) -> None:
    try:
        trainer.step()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        count = len(trainer.numbers)
        parts = next((parts for parts in range(trainer.parts + 1, count + 1) if count % parts == 0), None)
        remedy = "a smaller --set sample.queries" if parts is None else f"--set accumulate={parts}, the same in parts,"
        raise MemoryBudgetError(
            f"out of memory on {trainer.device} in a step of {count} samples; use {remedy} or a smaller --set batch"
        ) from error


class _Log:
    """The run's tables, and TensorBoard's where it is installed. Only the first process writes."""

    def __init__(self, run: Path, trainer: Trainer) -> None:
        self.run = run
        self.trainer = trainer
        self.board: Any = None
        self._since = (time.perf_counter(), trainer.waited)

    def __enter__(self) -> _Log:
        if self.trainer.processes.first:
            for name in (LOG, VALIDATION):
                _forget_after(self.run / name, self.trainer.iteration)
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                folder = str(self.run / "tensorboard")
                self.board = SummaryWriter(folder, purge_step=self.trainer.iteration + 1)
        return self

    def __exit__(self, *error: object) -> None:
        if self.board is not None:
            self.board.close()

    def losses(self) -> None:
        trainer = self.trainer
        losses = trainer.losses()
        now = (time.perf_counter(), trainer.waited)
        seconds, waited = now[0] - self._since[0], now[1] - self._since[1]
        self._since = now
        if not trainer.processes.first or not losses:
            return
        mean = sum(losses) / len(losses)
        factor = rate_factor(trainer.config.schedule, trainer.iteration - 1, trainer.config.iterations)
        progress = Progress(trainer.iteration, mean, factor, len(losses) / seconds, waited / seconds)
        row = {"iteration": trainer.iteration, "loss": f"{mean:.6f}", "rate": f"{factor:.6f}",
               "seconds": f"{seconds:.3f}", "data": f"{progress.waited:.4f}"}  # fmt: skip
        _append(self.run / LOG, row)
        if self.board is not None:
            self.board.add_scalar("loss", mean, trainer.iteration)
            self.board.add_scalar("rate", factor, trainer.iteration)
            self.board.add_scalar("iterations per second", progress.per_second, trainer.iteration)
        trainer.watcher.progress(progress)

    def scores(self, validator: Validator, run: Path) -> None:
        trainer, since = self.trainer, time.perf_counter()
        if trainer.processes.first:
            scores = trainer.validate(validator, run)
            _append(
                run / VALIDATION, {"iteration": trainer.iteration, **{k: f"{v:.3f}" for k, v in scores.psnr.items()}}
            )
            if self.board is not None:
                for scale, value in scores.psnr.items():
                    self.board.add_scalar(f"PSNR/{scale}", value, trainer.iteration)
            trainer.watcher.scored(trainer.iteration, scores)
        trainer.processes.wait()
        self._since = (self._since[0] + time.perf_counter() - since, self._since[1])  # scoring is no training


def _append(table: Path, row: dict[str, Any]) -> None:
    """Add a row to a table, and to the table's columns those that it has not: a validation's scales may change."""
    before: list[dict[str, Any]] = []
    columns = list(row)
    if table.is_file():
        with table.open(newline="") as file:
            reader = csv.DictReader(file)
            known = list(reader.fieldnames or [])
            columns = known + [name for name in columns if name not in known]
            if len(columns) > len(known):
                before = list(reader)
    if before:
        with atomic_path(table, overwrite=True) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows([*before, row])
        return
    try:
        with table.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
    except OSError as error:
        raise cannot_write(table, error) from error


def _forget_after(table: Path, iteration: int) -> None:
    """Take out the rows of steps that a resumed run does again."""
    if not table.is_file():
        return
    with table.open(newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    with atomic_path(table, overwrite=True) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows(
            [header, *(row for row in rows if row and row[0].isdecimal() and int(row[0]) <= iteration)]
        )


@contextlib.contextmanager
def _stop_signal(*, first: bool) -> Iterator[list[int]]:
    """Within the block, signals that ask to stop are noted in the list, the first of each; one that comes again, later
    than by the same event's second messenger (a shell's and the system's, a launcher's and the batch system's), does
    what it did before. The first process says that it has heard."""
    asked: list[int] = []
    before: dict[int, Any] = {}
    came: dict[int, float] = {}

    def note(number: int, frame: Any) -> None:
        now = time.monotonic()
        if number not in came:
            if not asked and first and sys.stderr is not None:
                # By the system alone: what prints may be in the middle of it.
                with contextlib.suppress(OSError, ValueError):
                    os.write(sys.stderr.fileno(), STOPPING)
            asked.append(number)
            came[number] = now
        elif now > came[number] + SAME_EVENT_S:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    if threading.current_thread() is not threading.main_thread():  # signals are someone else's
        yield asked
        return
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        known = getattr(signal, name, None)
        # What is ignored from the start, as nohup and shells' background jobs have it, stays ignored.
        if known is not None and signal.getsignal(known) is not signal.SIG_IGN:
            before[known] = signal.signal(known, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
