"""The model that comes with the package is worth having."""

import json
from pathlib import Path

import pytest

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
    assert rows[model, 2] - rows["bicubic", 2] >= 3.0
    assert rows[model, 4] - rows["bicubic", 4] >= 2.0
