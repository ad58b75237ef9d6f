"""How fast the engine paints, against the paper's arithmetic and against bicubic, and how near it comes to the
machine's limit.

Everything is measured in one process, in turns, so that what else the machine does falls on all alike; medians are
printed. The limit is a matrix product of the decoder's shape, measured between the turns: operations that the engine
needs, over the rate of that product, is the least time it could take.

    python benchmarks/bench.py                    a table, and benchmarks/results.json
    python benchmarks/bench.py --markdown FILE    also writes the table there
    python benchmarks/bench.py --device cuda      the same on a GPU
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import oracle  # noqa: E402

from liif_cli import allocator, checkpoint, weights  # noqa: E402
from liif_cli.engine import Engine  # noqa: E402
from liif_cli.models import Model, build  # noqa: E402
from liif_cli.models.decoding import linear_relu  # noqa: E402
from liif_cli.upscaler import choose_precision  # noqa: E402

PAPER = {
    "name": "liif",
    "args": {
        "encoder_spec": {"name": "edsr-baseline", "args": {"no_upsampling": True}},
        "imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [256, 256, 256, 256]}},
    },
}
ORACLE_CHUNK = 30_000  # queries, as the published code has it
BUDGET = 4 * 2**30


def picture(side: int) -> np.ndarray:
    """Something with edges and texture, the same every time."""
    y, x = np.mgrid[:side, :side] / side
    waves = np.stack([np.sin(40 * x * (y + k)) + np.sin(25 * (y - k * x)) for k in range(3)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 0.1, waves.shape)
    return np.clip((waves / 4 + 0.5 + noise) * 255, 0, 255).astype(np.uint8)


def operations(model: Model, low_res: int, scale: float) -> float:
    """Floating-point operations the network needs for a square picture."""
    return 2 * (low_res**2 * model.operations.per_code + (low_res * scale) ** 2 * model.operations.per_pixel)


def matrix_rate(width: int, dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Operations a second of a matrix product of the decoder's shape, every core busy with its own: the faster of
    torch's product and the engine's, which in float32 are of two libraries."""
    rows = 2**16 if device.type == "cuda" else 2048
    x = [torch.randn(rows, width, device=device).to(dtype) for _ in range(threads)]
    out = [torch.empty_like(part) for part in x]
    weight = torch.randn(width, width, device=device).to(dtype)
    repeats = 200 if device.type == "cuda" else max(8, int(2e9 / (rows * width * width)))

    bias = torch.zeros(width, device=device, dtype=dtype)

    def by_torch(number: int) -> None:
        torch.mm(x[number], weight, out=out[number])

    def by_engine(number: int) -> None:
        linear_relu(x[number], weight.T, bias)

    def seconds(product: Callable[[int], None]) -> float:
        def work(number: int) -> None:
            torch.set_num_threads(1)
            for _ in range(repeats):
                product(number)

        def run() -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, range(threads)))

        run()
        return timed(run, device)

    return 2 * rows * width * width * repeats * threads / min(seconds(by_torch), seconds(by_engine))


def timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(args: argparse.Namespace) -> dict[str, object]:
    device = torch.device(args.device)
    torch.manual_seed(0)
    models = {"paper": lambda: build(PAPER), "light": lambda: checkpoint.load(weights.resolve("default"))}
    half = choose_precision("auto", device)
    engines = {
        (name, dtype): Engine(make(), device, dtype, BUDGET)
        for name, make in models.items()
        for dtype in dict.fromkeys((torch.float32, half))
    }
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    references = {name: make().eval().to(device) for name, make in models.items()}
    rows = []
    for name, side, scale in args.cases:
        image, size = picture(side), (round(side * scale), round(side * scale))
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float().to(device) / 255
        pil = Image.fromarray(image)

        def by_oracle(name: str = name, tensor: torch.Tensor = tensor, size: tuple[int, int] = size) -> None:
            with torch.inference_mode(), torch.device(device):
                oracle.paint(references[name], tensor, size, ORACLE_CHUNK)

        runs: dict[str, Callable[[], object]] = {"oracle": by_oracle}
        for (model, dtype), engine in engines.items():
            if model == name:
                runs[str(dtype).removeprefix("torch.")] = lambda e=engine, i=image, s=size: [
                    None for _ in e.bands(i, s)
                ]
        runs["bicubic"] = lambda p=pil, s=size: p.resize((s[1], s[0]), Image.Resampling.BICUBIC)
        seconds: dict[str, list[float]] = {method: [] for method in runs}
        width = references[name].imnet.linears[0].out_features
        rates: dict[str, list[float]] = {method: [] for method in runs if method not in ("oracle", "bicubic")}
        for method, run in runs.items():
            if method != "oracle":
                run()  # the first time pays for what is set up once
        for _ in range(args.repeats):
            for method, run in runs.items():
                if method == "oracle":
                    allocator.give_back()  # so that it finds memory as in a process of its own
                seconds[method].append(timed(run, device))
            for method in rates:
                rates[method].append(matrix_rate(width, getattr(torch, method), device, threads))
        for method, times in seconds.items():
            median = statistics.median(times)
            row = {
                "model": name,
                "input": side,
                "scale": scale,
                "method": method,
                "seconds": median,
                "megapixels_per_second": size[0] * size[1] / 1e6 / median,
                "times_oracle": statistics.median(seconds["oracle"]) / median,
            }
            if method in rates:
                rate = statistics.median(rates[method])
                row["matrix_gflops"] = rate / 1e9
                row["fraction_of_limit"] = operations(references[name], side, scale) / rate / median
            rows.append(row)
            print_row(row)
    small = [row for row in rows if (row["input"], row["scale"]) == (128, 4)]
    paper, light = ({row["method"]: row for row in small if row["model"] == name} for name in ("paper", "light"))
    best = min(row["seconds"] for method, row in light.items() if method not in ("oracle", "bicubic"))
    light_ratio = paper["oracle"]["seconds"] / best
    print(f"light network against the paper's network by the oracle, x4: {light_ratio:.0f} times")
    return {"machine": machine(device), "rows": rows, "light_times_paper_oracle": light_ratio, "memory": memory(args)}


def memory(args: argparse.Namespace) -> list[dict[str, object]]:
    """Peak of a whole process that upscales, from a process of its own."""
    found = []
    # Not getrusage: its peak includes that of the process this one was forked from.
    code = (
        "import atexit, pathlib, re; from liif_cli.cli import main\n"
        "status = lambda: pathlib.Path('/proc/self/status').read_text()\n"
        "atexit.register(lambda: print('peak', int(re.search(r'VmHWM:\\s+(\\d+)', status())[1]) * 1024))\n"
        "main()"
    )
    for label, side, options in args.memory_cases:
        folder = Path(args.scratch)
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / "in.png"
        if not isinstance(side, tuple):
            side = (side, side)
        Image.fromarray(np.resize(picture(256), (*side, 3))).save(source, compress_level=1)
        started = time.perf_counter()
        command = [sys.executable, "-c", code, "upscale", str(source), "-q", "--overwrite", *options]
        printed = subprocess.run(command, capture_output=True, text=True, check=False)
        for output in folder.glob("out*"):
            output.unlink() if output.is_file() else None
        if printed.returncode:
            raise SystemExit(f"{label}: {printed.stderr}")
        peak = int(printed.stdout.split()[-1])
        row = {"case": label, "peak_mb": peak / 1e6, "seconds": time.perf_counter() - started}
        print(f"{label:58} {row['peak_mb']:8.0f} MB {row['seconds']:8.1f} s")
        found.append(row)
    return found


def machine(device: torch.device) -> dict[str, object]:
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    bf16 = any("avx512_bf16" in line for line in lines)
    name = f"{names[0] if names else platform.processor()}{', AVX-512 bf16' if bf16 else ''}"
    return {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def print_row(row: dict[str, object]) -> None:
    limit = f"{row['fraction_of_limit']:7.0%}" if "fraction_of_limit" in row else "      -"
    print(
        f"{row['model']:6} {row['input']:4} x{row['scale']:<4g} {row['method']:9} {row['seconds']:9.3f} s"
        f" {row['megapixels_per_second']:8.2f} MP/s {row['times_oracle']:8.1f} x oracle {limit} of limit",
        flush=True,
    )


def markdown(result: dict[str, object]) -> str:
    lines = [
        "| network | input | scale | method | seconds | output MP/s | times the oracle | share of the matrix limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        limit = f"{row['fraction_of_limit']:.0%}" if "fraction_of_limit" in row else ""
        lines.append(
            f"| {row['model']} | {row['input']}x{row['input']} | x{row['scale']:g} | {row['method']} |"
            f" {row['seconds']:.3f} | {row['megapixels_per_second']:.2f} | {row['times_oracle']:.1f} | {limit} |"
        )
    lines += ["", "| upscaling, the whole process | peak resident MB | seconds |", "|---|---|---|"]
    lines += [f"| {row['case']} | {row['peak_mb']:.0f} | {row['seconds']:.1f} |" for row in result["memory"]]
    lines += ["", f"The light network paints x4 {result['light_times_paper_oracle']:.0f} times faster than the oracle"]
    lines += ["paints the paper's.", "", f"Machine: {json.dumps(result['machine'])}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="x4 only, no memory runs")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    parser.add_argument("--scratch", default=Path(tempfile.gettempdir()) / "liif-bench")
    args = parser.parse_args()
    args.cases = [("paper", 128, 4.0), ("light", 128, 4.0)]
    if torch.device(args.device).type == "cuda":  # which has painted a small one before it is warm
        args.cases += [("paper", 1024, 4.0), ("light", 1024, 4.0)]
    if not args.quick:
        args.cases += [("light", 128, 2.0), ("light", 128, 2.7), ("light", 128, 8.0), ("light", 48, 30.0)]
    tiny = HERE.parent / "tests" / "data" / "official_tiny.pth"
    out = f"{args.scratch}/out"
    x30 = ["--scale", "30", "-m", str(tiny), "--memory", "1G", "-o"]
    args.memory_cases = [
        ("tiny network, 512x512 at x30, --memory 1G", 512, [*x30, out + ".png"]),
        ("tiny network, 1024x1024 at x30, --memory 1G", 1024, [*x30, out + ".jpg"]),
        (
            "light network, 24 megapixels at x2, --memory 2G",
            (4000, 6000),
            ["--scale", "2", "-m", "default", "--memory", "2G", "-o", out + ".png"],
        ),
    ]
    if args.quick or args.no_memory:
        args.memory_cases = []
    result = measure(args)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(markdown(result))


if __name__ == "__main__":
    main()
