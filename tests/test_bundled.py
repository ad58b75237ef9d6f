"""The model that comes with the package is worth having."""

import json
from pathlib import Path

import pytest
from skimage.data import astronaut

from liif_cli import load
from liif_cli.metrics import psnr
from liif_cli.resize import pil_bicubic

BENCHMARK = Path(__file__).parents[2] / "shared" / "data" / "benchmark"


@pytest.mark.skipif(not BENCHMARK.is_dir(), reason=f"Set5 is not here: {BENCHMARK}")
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_the_bundled_model_beats_bicubic_by_decibels(cli, precision):
    ran = cli(
        "eval",
        "--dataset",
        "set5",
        "--scales",
        "2,4",
        "--data",
        BENCHMARK,
        "--precision",
        precision,
        "--json",
        "-",
        "-q",
    )
    assert ran.code == 0, ran.err
    rows = {(row["method"], row["scale"]): row["psnr"] for row in json.loads(ran.out)["rows"]}
    model = next(method for method, _ in rows if method != "bicubic")
    assert rows[model, 2] - rows["bicubic", 2] >= 4.0
    assert rows[model, 4] - rows["bicubic", 4] >= 3.4


@pytest.mark.parametrize(("scale", "least"), [(2, 4.4), (4, 2.9)])
def test_the_bundled_model_is_sharper_than_interpolation(scale, least):
    """A photograph that it has not seen, reduced and enlarged again."""
    truth = astronaut()
    low_res = pil_bicubic(truth, (512 // scale, 512 // scale))
    ours = load("default", device="cpu").upscale(low_res, scale=scale)
    gain = psnr(ours, truth, border=scale, channel="y")
    gain -= psnr(pil_bicubic(low_res, (512, 512)), truth, border=scale, channel="y")
    assert gain >= least
