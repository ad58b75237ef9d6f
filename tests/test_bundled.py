"""The model that comes with the package is worth having."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
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


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_model_for_drawings_rings_less_than_bicubic(scale):
    draw = ImageDraw.Draw(image := Image.new("RGB", (96, 64), (210, 210, 210)))
    for step in range(6):
        draw.line((5, 6 + 9 * step, 40, 2 + 11 * step), (40, 40, 40))
        draw.ellipse((48 + 3 * step, 8 + 3 * step, 90 - 3 * step, 56 - 3 * step), outline=(150, 20, 20))
    low_res = np.asarray(image)
    ringing = {}
    for name in ("liif-light", "liif-drawn"):
        output = load(name, device="cpu", precision="float32").upscale(low_res, scale=scale)
        ringing[name] = beyond(low_res, output)
    ringing["bicubic"] = beyond(low_res, np.asarray(image.resize((96 * scale, 64 * scale), Image.Resampling.BICUBIC)))
    assert ringing["liif-drawn"] < ringing["bicubic"] < ringing["liif-light"]


def test_whichever_model_suits_a_picture_paints_it(tmp_path):
    drawn = Image.new("RGB", (64, 48), "white")
    for step in range(8):
        ImageDraw.Draw(drawn).rectangle((3 + 7 * step, 4, 6 + 7 * step, 40), fill=(20, 20, 30 * step))
    portrait = Image.fromarray(astronaut()[:64, 128:224])
    portrait.save(tmp_path / "coarse.jpg", quality=80)
    portrait.save(tmp_path / "fine.jpg", quality=95)
    chosen = load(device="cpu", precision="float32")
    for image, name in (
        (drawn, "liif-drawn"),
        (np.asarray(drawn), "liif-drawn"),
        (portrait, "liif-light"),
        (Image.open(tmp_path / "coarse.jpg"), "liif-jpeg"),
        (Image.open(tmp_path / "fine.jpg"), "liif-light"),
    ):
        model = load(name, device="cpu", precision="float32")
        assert np.array_equal(np.asarray(chosen.upscale(image, 2)), np.asarray(model.upscale(image, 2)))
        field = chosen.encode(image)
        assert field.model == name
        assert np.array_equal(np.asarray(field.render(2)), np.asarray(model.upscale(image, 2)))


def beyond(low_res, output):
    """How far the colours of an output leave the range of the nine input pixels around, in levels; the mean."""
    padded = torch.from_numpy(np.pad(low_res, ((1, 1), (1, 1), (0, 0)), mode="edge")).permute(2, 0, 1).float()
    scale = output.shape[0] // low_res.shape[0]
    most, least = (
        sign
        * torch.nn.functional.max_pool2d(sign * padded, 3, 1).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        for sign in (1, -1)
    )
    values = torch.from_numpy(np.array(output)).permute(2, 0, 1).float()
    return float(((values - most).clamp(min=0) + (least - values).clamp(min=0)).mean())
