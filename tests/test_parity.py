"""Every network answers as the official code does.

``tests/data/official_parity.*`` hold the official answers for networks whose tensors are filled by name, so that no
checkpoint has to travel; ``tests/data/README.md`` says how they were made.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch

from liif_cli import coords
from liif_cli.models import build

DATA = Path(__file__).parent / "data"
NETWORKS = json.loads((DATA / "official_parity.json").read_text())
TOLERANCE = 2e-5  # of the largest value


@pytest.fixture(scope="module")
def answers():
    with np.load(DATA / "official_parity.npz") as archive:
        return dict(archive)


def filled_by_name(name: str, shape: list[int]) -> torch.Tensor:
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    factor = np.sqrt(1 / np.prod(shape[1:])) if len(shape) >= 2 else 0.05
    return torch.from_numpy((values * factor).astype(np.float32))


def official_network(name: str):
    model = build(NETWORKS[name]["model"])
    state = {key: filled_by_name(key, shape) for key, shape in NETWORKS[name]["shapes"].items()}
    model.load_state_dict(state, strict=True)
    return model.eval()


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_both_doors_give_the_official_answers(name, answers):
    model = official_network(name)
    image = torch.from_numpy(answers["image"]).permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[-2:]
    with torch.no_grad():
        features = model.encode(image)
        mean, deviation = answers[f"{name}/features_mean_std"]
        assert float(features.double().mean()) == pytest.approx(mean, abs=1e-5)
        assert float(features.double().std()) == pytest.approx(deviation, rel=1e-5)
        for output in NETWORKS[name]["outputs"]:
            expected = answers[output["key"]]
            size = output["height"], output["width"]
            rows, columns = coords.axis(size[0], height), coords.axis(size[1], width)
            field = model.fold(features, torch.tensor([rows.cell, columns.cell]))
            wanted = slice(None) if output["queries"] == "all" else answers[output["queries"]]

            painted = field.paint(rows, columns).reshape(-1, 3).numpy()[wanted]
            assert relative_error(painted * 2 - 1, expected) < TOLERANCE, ("paint", output["key"])

            queried = field.query(oracle.grid_coords(size)[wanted][None])[0].numpy()
            assert relative_error(queried * 2 - 1, expected) < TOLERANCE, ("query", output["key"])
