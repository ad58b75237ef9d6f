"""How fast `liif train` is, against the same network trained as the paper writes it, and how near it comes to the
machine's limit.

The paper's way is `tests/oracle.py`, which unfolds and concatenates, in float32 with Adam, on the same samples. Both
take turns in one process, so that what else the machine does falls on both alike; medians are printed. The limit is
a matrix product of the decoder's shape, measured between the turns: the operations an iteration needs, forwards and
backwards, over the rate of that product, is the least time it could take. On a CPU `liif train` tells the C library to
keep freed memory; the paper's way has the usual allocator, or the same with --keep-memory.

    python benchmarks/training.py                    the official configuration in bfloat16, and training.json
    python benchmarks/training.py --device cuda      the same on a GPU
    python benchmarks/training.py --preset liif-light --set batch=32
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import oracle  # noqa: E402

from liif_cli import __version__  # noqa: E402
from liif_cli.allocator import reused_memory  # noqa: E402
from liif_cli.config import TrainConfig, load_train  # noqa: E402
from liif_cli.data import Batch, PictureStore, open_store  # noqa: E402
from liif_cli.models import Model, build  # noqa: E402
from liif_cli.models.decoding import linear_relu  # noqa: E402
from liif_cli.train import Trainer  # noqa: E402


class Unfolded:
    """The paper's arithmetic and optimiser."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.device = device
        self.model: Model = build(config.model).to(device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.optimiser.learning_rate)

    def step(self, batch: Batch) -> None:
        side = torch.tensor(batch.low_res.shape[-2:], device=self.device)
        cell = (batch.cell / side)[:, None].expand_as(batch.coords)
        with self.device:  # the oracle makes its tensors wherever that is the default
            answers = oracle.query(self.model, batch.low_res, batch.coords, cell)
        loss = F.l1_loss(answers, batch.high_res) / self.model.deviation
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def pictures(folder: Path) -> PictureStore:
    """Pictures of noise: what they show makes no difference to the time."""
    random = np.random.default_rng(0)
    source = folder / "pictures"
    source.mkdir()
    for number in range(8):
        Image.fromarray(random.integers(0, 256, (512, 768, 3), dtype=np.uint8)).save(source / f"{number}.png")
    return open_store(source, folder / "cache")


def operations(model: Model, config: TrainConfig) -> float:
    """Floating-point operations of an iteration; the backward pass takes twice the forward one's."""
    sample, (per_code, per_pixel) = config.sample, model.operations
    return 6 * config.batch * (sample.low_res_side**2 * per_code + sample.queries * per_pixel)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds; with --threads 1 those of the processor, which do not depend on what else the machine does."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a matrix product of the decoder's shape."""
    rows, width, repeats = (2**17, 256, 50) if device.type == "cuda" else (2**13, 256, 4)
    x, weight = torch.randn(rows, width, device=device).to(dtype), torch.randn(width, width, device=device).to(dtype)
    out, bias = torch.empty_like(x), torch.zeros(width, device=device, dtype=dtype)
    products = (lambda: torch.mm(x, weight, out=out)), (lambda: linear_relu(x, weight.T, bias))

    def seconds(product: Callable[[], object]) -> float:
        product()
        return timed(lambda: [product() for _ in range(repeats)], device)

    return 2 * rows * width * width * repeats / min(seconds(product) for product in products)


def measure(args: argparse.Namespace) -> dict[str, object]:
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    config = load_train(args.preset, [f"precision={args.precision}", *args.set])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, pictures(Path(folder)), device)
        unfolded = None if args.no_oracle else Unfolded(config, device)
        batch = trainer.sampler.batch(0, range(config.batch), device)
        dtype = trainer.dtype or torch.float32
        for _ in range(args.warmup):
            trainer.step()
        if unfolded is not None:
            timed(lambda: unfolded.step(batch), device)
        kept = reused_memory if device.type == "cpu" else contextlib.nullcontext
        own, paper, rates, data = [], [], [], []
        # A GPU works behind the program's back: there, several iterations are timed together.
        together = 20 if device.type == "cuda" else args.together
        for _ in range(args.rounds):
            with kept():  # as `liif train` does
                trainer.step()  # gets the memory that is then kept
                waited = trainer.waited
                own.append(timed(lambda: [trainer.step() for _ in range(together)], device) / together)
            data.append((trainer.waited - waited) / together / own[-1])
            if unfolded is not None:
                with kept() if args.keep_memory else contextlib.nullcontext():
                    if args.keep_memory:
                        unfolded.step(batch)
                    paper.append(timed(lambda: unfolded.step(batch), device))
            rates.append(matrix_rate(dtype, device))
        trainer.losses()
    seconds = statistics.median(own)
    print("turns, ms:", [round(1000 * s) for s in own], [round(1000 * s) for s in paper], file=sys.stderr)
    least = operations(trainer.model, config) / statistics.median(rates)
    result = {
        "preset": args.preset, "settings": args.set, "batch": config.batch, "low_res_side": config.sample.low_res_side,
        "queries": config.sample.queries, "precision": str(dtype).removeprefix("torch."), "device": describe(device),
        "torch": torch.__version__, "version": __version__, "threads": torch.get_num_threads(),
        "ms_per_iteration": 1000 * seconds, "iterations_per_second": 1 / seconds,
        "data_share": statistics.median(data), "limit_tflops": statistics.median(rates) / 1e12,
        "share_of_limit": least / seconds,
    }  # fmt: skip
    if paper:
        result |= {
            "paper_ms_per_iteration": 1000 * statistics.median(paper),
            "times_the_paper": statistics.median(b / a for a, b in zip(own, paper, strict=True)),
        }
    return result


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def print_row(result: dict[str, object]) -> None:
    """One row of a table in Markdown, with its head."""
    columns = {
        "preset": result["preset"],
        "device": result["device"],
        "precision": result["precision"],
        "ms / iteration": f"{result['ms_per_iteration']:.1f}",
        "iterations / s": f"{result['iterations_per_second']:.2f}",
        "unfolded float32, ms": f"{result['paper_ms_per_iteration']:.1f}"
        if "paper_ms_per_iteration" in result
        else "-",
        "times": f"{result['times_the_paper']:.2f}" if "times_the_paper" in result else "-",
        "waiting for data": f"{result['data_share']:.1%}",
        "of the matrix limit": f"{result['share_of_limit']:.0%}",
    }
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    print("| " + " | ".join(str(value) for value in columns.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--preset", default="edsr-baseline-liif")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument(
        "--together",
        type=int,
        default=4,
        help="iterations in a turn, on a CPU; they follow one another",
    )
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 1 measures the processor's time")
    parser.add_argument("--no-oracle", action="store_true", help="measure liif alone")
    parser.add_argument("--keep-memory", action="store_true", help="let the paper's way keep freed memory too")
    parser.add_argument("--json", type=Path, default=HERE / "training.json")
    args = parser.parse_args()
    result = measure(args)
    print_row(result)
    args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
