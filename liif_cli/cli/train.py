"""``liif train``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liif_cli.allocator import reused_memory
from liif_cli.cli.machine import PANEL, DeviceOption, flag
from liif_cli.errors import OutputError, UsageError

if TYPE_CHECKING:
    import torch

    from liif_cli.checkpoint import Checkpoint
    from liif_cli.config import TrainConfig
    from liif_cli.data import PictureStore
    from liif_cli.distributed import Processes
    from liif_cli.train import Progress, Trainer
    from liif_cli.validate import Scores

DATA, RECIPE, RUN = "Pictures", "Recipe", "Run"


def train(
    preset: Annotated[
        str | None,
        typer.Argument(
            metavar="PRESET|FILE.toml", help="A recipe by name (--list shows them) or a file.", show_default=False
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Folder of pictures to train on.", show_default=False, rich_help_panel=DATA
        ),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option(
            "--val",
            metavar="DIR",
            help="Pictures to score on, the first ten of a folder (validation.pictures), every 5000 iterations"
            " (validation.every) and at the end. They are not trained on, unless they are all of --data.",
            show_default=False,
            rich_help_panel=DATA,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="RUN", help="Folder of the run. \\[default: runs/PRESET]", rich_help_panel=RUN
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of the recipe, such as iterations=20000; may be repeated.",
            show_default=False,
            rich_help_panel=RECIPE,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="NAME|FILE",
            help="Begin with this model's weights instead of random ones; a smaller decoder grows to fit.",
            show_default=False,
            rich_help_panel=RECIPE,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="NAME|FILE",
            help="Learn this model's answers, each the mean of eight views, instead of the pictures themselves.",
            show_default=False,
            rich_help_panel=RECIPE,
        ),
    ] = None,
    dry_run: Annotated[
        bool, flag("--dry-run", help="Print the final settings and exit.", rich_help_panel=RECIPE)
    ] = False,
    show: Annotated[bool, flag("--list", help="List the recipes and exit.", rich_help_panel=RECIPE)] = False,
    resume: Annotated[
        bool,
        flag("--resume", help="Resume the run in the folder, if there is one.", rich_help_panel=RUN),
    ] = False,
    overwrite: Annotated[
        bool, flag("--overwrite", help="Replace an existing run and start over.", rich_help_panel=RUN)
    ] = False,
    device: DeviceOption = "auto",
    quiet: Annotated[bool, flag("-q", "--quiet", help="Print errors only.", rich_help_panel=PANEL)] = False,
    verbose: Annotated[
        bool, flag("-v", "--verbose", help="Name every picture left out.", rich_help_panel=PANEL)
    ] = False,
) -> int:
    """Train a model on your own pictures, or repeat the paper's experiments.

    Pictures are decoded once, into the cache. The run's folder holds the
    settings, the log, the model and the state to resume from. Ctrl-C saves the
    run before it stops.

    [bold]Train the bundled kind of model on a folder of photographs:[/bold]
      liif train liif-light --data photos --val some-others
      liif upscale photo.jpg --scale 2.7 -m runs/liif-light

    [bold]Go on after Ctrl-C or a crash:[/bold]
      liif train liif-light --data photos --resume

    [bold]A run that can be made longer later:[/bold]
      liif train liif-light -o runs/long --data photos --set schedule.name=trapezoid
      liif train --resume -o runs/long --data photos --set iterations=2e5

    [bold]A small model from a large one, or a model from its own eight views:[/bold]
      liif train liif-light -o runs/small --data photos --teacher rdn-liif
      liif train liif-light -o runs/taught --data photos --start default --teacher default

    [bold]Several GPUs:[/bold]
      torchrun --nproc-per-node 4 -m liif_cli train rdn-liif --data DIV2K/DIV2K_train_HR
    """
    if show:
        _list()
        return 0
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other; give one")
    from liif_cli.config import load_train, presets

    if preset is None:
        saved = None if output is None else output / "config.json"
        if not resume or saved is None or not saved.is_file():
            if resume and output is not None:
                raise UsageError(f"{output}: holds no run to resume; name its folder, or a recipe to begin one")
            raise UsageError("name a recipe, such as liif-light; liif train --list shows them")
        preset = str(saved)
    config = load_train(preset, settings or [])
    if start is not None:
        config = replace(config, start=start)
    if teacher is not None:
        config = replace(config, teacher=teacher)
    if dry_run and not resume:
        _show(config)
        return 0
    if data is None and not dry_run:
        raise UsageError("name the pictures to train on: --data DIR")
    if val is not None and config.sample.kind == "picture":
        raise UsageError("a recipe that fits one picture has nothing to score on: leave --val out")
    run = output if output is not None else _usual_run(Path(preset), resume)
    going_on, begun_with = _check_run(run, config, resume=resume, overwrite=overwrite)
    if begun_with and preset in presets():
        # What may change has changed only where somebody says so; a file of one's own does.
        config = load_train(str(run / "config.json"), settings or [])
    config = replace(config, **begun_with)
    if dry_run or data is None:
        _show(config)
        return 0

    from liif_cli.distributed import environment, joined
    from liif_cli.upscaler import choose_device

    processes = environment()
    chosen = choose_device(_own_device(device, processes))
    say = _Terminal(config.iterations, quiet=quiet or not processes.first, verbose=verbose)
    with joined(processes, chosen), say, _alone(run) if processes.first else contextlib.nullcontext():
        begun = bool(begun_with)
        return _train(
            config, data, val, run, chosen, processes, say, going_on=going_on, begun=begun, overwrite=overwrite
        )


def _usual_run(recipe: Path, resume: bool) -> Path:
    """Where a recipe's run is; what goes on by a run's own settings is that run."""
    own = resume and recipe.name == "config.json" and (recipe.parent / "state.pth").is_file()
    return recipe.parent if own else Path("runs") / recipe.stem


def _train(
    config: TrainConfig,
    data: Path,
    val: Path | None,
    run: Path,
    device: torch.device,
    processes: Processes,
    say: _Terminal,
    *,
    going_on: bool,
    begun: bool,
    overwrite: bool,
) -> int:
    from liif_cli import checkpoint
    from liif_cli.train import TEACHER, Trainer, begin_with, network, run_training, teacher_of
    from liif_cli.validate import Validator

    if config.teacher_share < 1 and not config.teacher:
        raise UsageError(f"teacher_share = {config.teacher_share!r}: name the --teacher")
    if config.teacher_share == 0:
        raise UsageError("teacher_share = 0: nothing would be learned from it; leave --teacher out")
    model = network(config)  # what is wrong with it, or with the shares, is told before hours of decoding
    processes.share(config.batch)
    beginning = teacher = None
    if config.start and not going_on:
        beginning = checkpoint.read(_outside(run, config.start))
        begin_with(model, beginning, config.start)
    if config.teacher:
        kept = run / TEACHER if begun else None  # the same, whatever has become of the file
        teacher = checkpoint.read(kept if kept and kept.exists() else _outside(run, config.teacher))
        teacher_of(config, teacher, config.teacher)
    validator = None if val is None else Validator(val, config.validation)
    store = _open_store(data, val, config, processes, say)
    trainer = Trainer(config, store, device, processes=processes, watcher=say)
    if going_on:
        trainer.resume(run)
    elif beginning is not None:
        trainer.start_from(beginning, config.start)
    if not processes.agree(trainer.iteration, device):
        raise UsageError(f"{run}: is not the same folder for all processes; name one that their machines share")
    if teacher is not None:
        trainer.learn_from(teacher, config.teacher)
    done = trainer.iteration >= config.iterations
    if done:
        say.note(
            f"{run}: all {config.iterations} iterations are done; --set iterations=N goes further, at first with the"
            " higher learning rate of a run of that length"
        )
    if done and (validator is None or trainer.is_scored_by(validator)):
        if processes.first:
            print(run / checkpoint.RUN_MODEL)
        return 0
    if processes.first and not going_on:
        _clear(run)
        if teacher is not None:
            _keep(teacher, run / TEACHER)
    say.begin(trainer, run)
    with reused_memory() if trainer.device.type == "cpu" else contextlib.nullcontext():
        signal = run_training(trainer, run, validator=validator)
    if signal is not None:
        say.close()
        how = "--resume instead of --overwrite" if overwrite else "--resume"
        say.note(f"saved at iteration {trainer.iteration}; the same command with {how} goes on from there")
        return 128 + signal  # as shells expect it
    say.close()
    if trainer.skipped:
        say.note(f"steps left out for a loss above optimiser.skip_loss: {trainer.skipped}")
    if processes.first:
        print(run / checkpoint.RUN_MODEL)
    return 0


def _outside(run: Path, name: str) -> Path:
    """The file of a model. Raises UsageError where a run that begins would take it away."""
    from liif_cli import weights

    path = weights.resolve(name).resolve()
    if path.is_relative_to(run.resolve()):
        raise UsageError(f"{name}: is in {run}, where the run that begins puts its own; name another folder with -o")
    return path


def _open_store(
    data: Path, val: Path | None, config: TrainConfig, processes: Processes, say: _Terminal
) -> PictureStore:
    from liif_cli.data import open_store
    from liif_cli.weights import cache_folder

    rule = config.sample
    square = rule.size_max if rule.kind == "resized" else None

    def opened() -> PictureStore:
        progress = say.decoding if processes.local_rank == 0 else None
        return open_store(
            data,
            cache_folder() / "pictures",
            smallest_side=rule.largest_crop,
            square=square,
            validation=val,
            progress=progress,
        )

    # One process decodes; one of each machine finds that, or decodes where machines share no cache; then all find it.
    store = opened() if processes.first else None
    processes.wait()
    if processes.local_rank == 0:
        store = store or opened()
    processes.wait()
    store = store or opened()
    say.left_out(store.skipped, len(store))
    if val is not None and data.resolve().is_relative_to(val.resolve()):
        say.note(f"--val {val} is --data, or lies around it: what is scored is trained on as well")
    return store


def _own_device(name: str, processes: Processes) -> str:
    """The device of this process: of several, each has its own GPU, or its share of the CPU."""
    import torch

    if processes.world == 1:
        return name
    if name not in ("auto", "cuda", "cpu"):
        raise UsageError(f"--device {name}: of several processes each has its own; use cuda, cpu or auto")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    count = torch.cuda.device_count()
    if 0 < count <= processes.local_rank:
        raise UsageError(f"more processes than GPUs, of which {count} can be used here: --nproc-per-node {count}")
    return f"cuda:{processes.local_rank}"


def _list() -> None:
    from liif_cli.config import load_train, presets

    names = presets()
    width = max(map(len, names))
    for name in names:
        typer.echo(f"{name:{width}}  {load_train(name).description}")


def _show(config: TrainConfig) -> None:
    from liif_cli.config import to_mapping
    from liif_cli.train import network

    network(config)  # whatever is wrong with it is said now
    typer.echo(json.dumps(to_mapping(config), indent=2))


# What may change when a run goes on: everything else would make it another run.
_MAY_CHANGE = {"iterations", "save_every", "log_every", "validation", "compile", "accumulate", "description"}
_MODELS = ("start", "teacher")  # of the beginning; need not be named again


def _check_run(run: Path, config: TrainConfig, *, resume: bool, overwrite: bool) -> tuple[bool, dict[str, Any]]:
    """Whether there is a run to go on with, and, with ``resume``, the models that it was begun with.

    Raises UsageError or OutputError where nothing may be written.
    """
    from liif_cli.checkpoint import RUN_MODEL
    from liif_cli.config import TrainConfig, from_mapping, to_mapping

    saved, state = run / "config.json", run / "state.pth"
    if run.exists() and not run.is_dir():
        raise OutputError(f"{run}: is a file; name a folder for the run with -o")
    before: dict[str, Any] | None = None
    reason = ""
    # By way of the settings as they are now: one that is new has its default in a run that was begun without it.
    try:
        before = to_mapping(from_mapping(TrainConfig, json.loads(saved.read_text()), str(saved)))
    except (OSError, ValueError, AttributeError, TypeError, UsageError) as error:
        reason = str(error).removeprefix(f"{saved}: ")
    begun = before is not None or state.exists()  # other programs have a config.json, too
    # What a run that was killed at its very beginning may have left.
    items = list(run.iterdir()) if run.is_dir() else []
    if not begun and any(item.name != "teacher.safetensors" and not item.match(".*.part") for item in items):
        raise OutputError(f"{run}: holds something that is not a training run; name another folder with -o")
    if begun and not resume and not overwrite:
        raise OutputError(
            f"{run}: holds a training run already; go on with it by --resume, or begin anew by --overwrite"
        )
    # The folder is made when there is something to put into it; whether it can be is better known now.
    there = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise OutputError(f"{run}: no permission to write in {there}; name another folder with -o")
    if not resume or not begun:
        return False, {}
    if not state.exists() and (run / RUN_MODEL).exists():
        raise OutputError(
            f"{run}: holds a model but not {state.name}, without which its run cannot go on; train onwards from the"
            f" model with --start {run} and another folder (-o)"
        )
    if before is None:
        raise OutputError(
            f"{saved}: cannot be read ({reason}), so the run cannot go on; mend it, or train onwards from its model"
            f" with --start {run} and another folder (-o)"
        )
    before, now = (json.loads(json.dumps(settings)) for settings in (before, to_mapping(config)))
    named = {key for key in now if key not in _MODELS or now[key]}
    changed = [key for key in now if key in named - _MAY_CHANGE and now[key] != before[key]]
    if changed:
        key = changed[0]
        was, asked = before[key], now[key]
        while isinstance(was, dict) and isinstance(asked, dict) and was.keys() == asked.keys():
            inner = next(name for name in was if was[name] != asked[name])
            key, was, asked = f"{key}.{inner}", was[inner], asked[inner]
        raise UsageError(
            f"{run}: was begun with {key} = {json.dumps(was)}, not {json.dumps(asked)}; to go on with its own settings,"
            f" name no recipe: liif train --resume -o {run} --data DIR; with others, begin in another folder (-o)"
        )
    return state.exists(), {key: before[key] for key in _MODELS}


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Keep other processes of this machine out of a run's folder, by a lock that the system releases when this one ends
    in any way; where files cannot be locked, by nothing."""
    from filelock import FileLock, Timeout

    from liif_cli.weights import cache_folder

    place = cache_folder() / "runs" / f"{hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:16]}.lock"
    lock = FileLock(place)
    with contextlib.suppress(OSError, NotImplementedError):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"{run}: another process is training there; wait for it, or name another folder with -o"
            ) from None
    try:
        for left in run.glob(".*.part"):  # of runs that were killed while they saved
            with contextlib.suppress(OSError):
                left.unlink()
        yield
    finally:
        lock.release()


def _clear(run: Path) -> None:
    """Take away what an earlier run left."""
    from liif_cli.checkpoint import RUN_MODEL
    from liif_cli.train import CONFIG, LOG, SAMPLE, STATE, TEACHER, VALIDATION

    for name in (STATE, CONFIG, LOG, VALIDATION, SAMPLE, TEACHER, RUN_MODEL):
        (run / name).unlink(missing_ok=True)


def _keep(teacher: Checkpoint, path: Path) -> None:
    from liif_cli import checkpoint
    from liif_cli.files import cannot_write

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    checkpoint.write(path, teacher)


class _Terminal:
    """Tells a person how the run goes: a bar where one looks on, lines otherwise. All on standard error."""

    def __init__(self, iterations: int, *, quiet: bool, verbose: bool) -> None:
        self.iterations = iterations
        self.quiet = quiet
        self.verbose = verbose
        self.bar: Any = None
        self._begun = (0.0, 0)
        self.interactive = sys.stderr.isatty() and not quiet

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _bar(self, total: int, what: str, unit: str, done: int = 0) -> None:
        from tqdm import tqdm

        self.close()
        self.bar = tqdm(total=total, initial=done, desc=what, unit=unit, file=sys.stderr, dynamic_ncols=True)

    def decoding(self, done: int, total: int) -> None:
        if self.interactive and (self.bar is None or done == 1):
            self._bar(total, "decoding", "picture")
        if self.bar is not None:
            self.bar.update(done - self.bar.n)

    def left_out(self, skipped: Sequence[str], used: int) -> None:
        self.close()
        if not skipped:
            return
        shown = skipped if self.verbose else skipped[:3]
        for line in shown:
            self.note(f"left out: {line}")
        more = " (-v names them all)" if len(shown) < len(skipped) else ""
        self.note(f"{len(skipped)} picture{'s' * (len(skipped) > 1)} left out, {used} used{more}")

    def begin(self, trainer: Trainer, run: Path) -> None:
        parameters = sum(value.numel() for value in trainer.model.parameters() if value.requires_grad)
        precision = "float32" if trainer.dtype is None else str(trainer.dtype).removeprefix("torch.")
        pictures = len(trainer.sampler.store)
        self.note(f"{parameters:,} parameters, {pictures} pictures, {trainer.device}, {precision}; the run is in {run}")
        self._begun = time.monotonic(), trainer.iteration
        if self.interactive:
            self._bar(self.iterations, "training", "it", trainer.iteration)

    def progress(self, progress: Progress) -> None:
        if self.bar is not None:
            self.bar.set_postfix({"loss": f"{progress.loss:.4f}"}, refresh=False)
            self.bar.update(progress.iteration - self.bar.n)
        elif not self.quiet:
            # By the rate since the start, for a teacher answers at times and not at others.
            since, first = self._begun
            left = (self.iterations - progress.iteration) * (time.monotonic() - since) / (progress.iteration - first)
            self.note(
                f"iteration {progress.iteration}/{self.iterations}: loss {progress.loss:.4f},"
                f" {progress.per_second:.2f} it/s, {_duration(left)} left"
            )

    def scored(self, iteration: int, scores: Scores) -> None:
        self.note(f"iteration {iteration}: PSNR {', '.join(f'{k} {v:.2f} dB' for k, v in scores.psnr.items())}")

    def note(self, text: str) -> None:
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
