"""How busy a batch keeps the engine: the share of the wall time of `batch.run` that its thread spends painting.

    python benchmarks/batch.py [--count 200] [--side 96] [--scale 2] [--model auto]

Painting is the time inside the generator that the engine's bands come from (encoding, folding, decoding), added up by
wrapping it. The rest is the painting thread waiting for a picture to be read or for the writer to take a band, and what
it does itself: planning, checking outputs, reporting. Every picture is read from and written to the disk as PNG.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Generator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

# As the command line does; it counts only before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from PIL import Image

from liif_cli import batch, jobs, upscaler
from liif_cli.cli.batch_report import Report

SPENT = {"painting": 0.0}


def timed(bands: Any) -> Any:
    """Wrap `OpenPicture.bands` so that the time inside it is added up."""

    def wrapper(*arguments: Any, **options: Any) -> Generator[np.ndarray, None, None]:
        generator = bands(*arguments, **options)
        while True:
            began = time.perf_counter()
            try:
                band = next(generator)
            except StopIteration:
                return
            finally:
                SPENT["painting"] += time.perf_counter() - began
            yield band

    return wrapper


def photograph(side: int, seed: int) -> np.ndarray:
    """Smooth shapes with some noise: compresses about as well as a photograph."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(float)
    return np.clip(smooth + generator.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def main() -> None:
    """Measure once and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="liif-batch-") as text:
        folder = Path(text)
        (folder / "in").mkdir()
        for number in range(asked.count):
            Image.fromarray(photograph(asked.side, number)).save(folder / "in" / f"{number:04}.png")
        began = time.perf_counter()
        loaded = upscaler.load(asked.model, device=asked.device)
        loading = time.perf_counter() - began
        upscaler.OpenPicture.bands = timed(upscaler.OpenPicture.bands)  # type: ignore[method-assign]
        options = jobs.Options(upscaler.Sizing(scale=asked.scale), output=folder / "out")
        began = time.perf_counter()
        plan = jobs.plan_jobs(jobs.find_sources([str(folder / "in")], recursive=False).sources, options)
        report = Report(asked.count, model="", as_json=True, quiet=True, verbose=False, picture_to_stdout=False)
        with (folder / "log").open("w") as log, redirect_stdout(log), report:
            results = batch.run(plan.jobs, loaded, options, report)
        wall = time.perf_counter() - began
        assert all(result.error is None for result in results)
    share = SPENT["painting"] / wall
    measured = {
        "pictures": len(results),
        "side": asked.side,
        "scale": asked.scale,
        "device": str(loaded.device),
        "loading_s": round(loading, 2),
        "wall_s": round(wall, 2),
        "painting_s": round(SPENT["painting"], 2),
        "painting_share": round(share, 3),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
