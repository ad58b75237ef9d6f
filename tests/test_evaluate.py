"""Numbers that can be trusted: the protocol to the last detail, through the engine that upscales, and kept when
interrupted."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import photo, save
from PIL import Image
from typer.testing import CliRunner

from liif_cli import __version__, checkpoint, scorebook, weights
from liif_cli.benchmarks import find
from liif_cli.benchmarks.datasets import read_rgb
from liif_cli.checkpoint import Checkpoint
from liif_cli.cli import app
from liif_cli.errors import InputError, MemoryBudgetError, ModelError, UsageError
from liif_cli.evaluate import (
    KernelMethod,
    ModelMethod,
    Row,
    Score,
    Work,
    evaluate,
    load_methods,
    parse_scales,
    summarise,
)
from liif_cli.models import build
from liif_cli.perceptual import Lpips
from liif_cli.protocol import Protocol
from liif_cli.published import published
from liif_cli.resize import matlab_bicubic
from liif_cli.scorebook import Scorebook
from liif_cli.upscaler import load

DATA = Path(__file__).parents[2] / "shared" / "data"
TINY = Path(__file__).parent / "data" / "official_tiny.pth"
needs_benchmark = pytest.mark.skipif(
    not (DATA / "benchmark").is_dir(), reason=f"no benchmark pictures at {DATA / 'benchmark'}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("LIIF_DATA", "LIIF_DEVICE", "LIIF_PRECISION", "LIIF_MEMORY", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LIIF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two smooth pictures with an edge, 50x44 and 41x60."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, height, width in (("a", 50, 44), ("b", 41, 60)):
        y, x = np.mgrid[:height, :width] / 30
        planes = [np.sin(3 * x + 2 * y), np.cos(4 * y - x), np.sign(x - y)]
        pixels = (127.5 + 100 * np.stack(planes, axis=2)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def work_of(photos: Path, methods: list[Any], scales: list[float], **options: Any) -> Work:
    return Work(methods, [find(str(photos), [])], scales, Protocol(**options))


def scores_of(work: Work, **options: Any) -> list[Score]:
    return [score for _, score in evaluate(work, **options)]


def shaved(image: np.ndarray, border: int) -> np.ndarray:
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def liif(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


# --- the protocol


@needs_benchmark
@pytest.mark.parametrize(("title", "images", "ssim"), [("Set5", 5, 0.9299), ("Set14", 14, 0.8689)])
def test_bicubic_is_what_is_in_print(title: str, images: int, ssim: float) -> None:
    """Of Set14 one picture has one channel."""
    work = Work([KernelMethod("bicubic")], [find(title.lower(), [DATA])], [2.0, 3.0, 4.0])
    rows = summarise(scores_of(work))
    in_print = published(title)["bicubic"]
    assert {row.scale: row.psnr for row in rows} == pytest.approx(in_print, abs=0.005 if title == "Set5" else 0.012)
    assert [row.images for row in rows] == [images] * 3
    assert rows[0].ssim == pytest.approx(ssim, abs=1e-4)


@needs_benchmark
@pytest.mark.parametrize(("rounding", "expected"), [("none", 33.684), ("8bit", 33.678)])
def test_fed_the_models_files_bicubic_scores_a_little_more(rounding: str, expected: float) -> None:
    work = Work([KernelMethod("bicubic")], [find("set5", [DATA])], [2.0], Protocol(rounding=rounding))
    (row,) = summarise(scores_of(work))
    assert row.psnr == pytest.approx(expected, abs=0.001)
    assert row.low_res == "files"


@needs_benchmark
def test_the_bundled_model_scores_on_set5_what_its_card_says() -> None:
    work = Work(load_methods(["default"], []), [find("set5", [DATA])], [8.0])
    (row,) = summarise(scores_of(work))
    assert (row.method, row.low_res) == ("liif-light", "pil")
    assert row.psnr == pytest.approx(weights.find("liif-light").scores["Set5"]["x8"], abs=0.005)


@pytest.mark.parametrize("scale", [2.0, 2.6])
@pytest.mark.parametrize("color", ["y", "rgb"])
def test_a_score_is_the_protocol_s_formula_on_what_upscale_makes(photos: Path, scale: float, color: str) -> None:
    (method,) = load_methods([str(TINY)], [])
    work = work_of(photos, [method], [scale], color=color)
    for score, truth in zip(scores_of(work), work.datasets[0].truths, strict=True):
        pair = work.datasets[0].pair(truth, scale, work.protocol)
        size = pair.high_res.shape[:2]
        made = load(TINY, precision="float32").upscale(pair.low_res / 255, size=size)
        error = shaved(made - pair.high_res / 255, int(np.ceil(scale)))
        if color == "y":
            error = error @ (np.array([65.738, 129.057, 25.064]) / 256)
        assert score.psnr == pytest.approx(-10 * np.log10(np.mean(error**2)), abs=1e-4)
        assert (score.height, score.width) == size
        assert score.seconds > 0
        assert score.peak_memory_bytes > 2**20


def test_an_ensemble_is_scored_beside_its_model_as_upscale_paints_it(photos: Path) -> None:
    plain, ensemble = load_methods([str(TINY)], [], ensemble=True)
    assert (plain.name, ensemble.name) == ("official_tiny", "official_tiny+")
    assert plain.identity != ensemble.identity
    work = work_of(photos, [plain, ensemble], [2.6], color="rgb")
    scores = list(scores_of(work))
    for truth in work.datasets[0].truths:
        pair = work.datasets[0].pair(truth, 2.6, work.protocol)
        size = pair.high_res.shape[:2]
        model = load(TINY, precision="float32")
        for way, name in ((False, plain.name), (True, ensemble.name)):
            made = model.upscale(pair.low_res / 255, size=size, ensemble=way)
            error = shaved(made - pair.high_res / 255, 3)
            (score,) = (one for one in scores if (one.method, one.image) == (name, truth.name))
            assert score.psnr == pytest.approx(-10 * np.log10(np.mean(error**2)), abs=1e-4)


def test_colour_border_rounding_and_degradation_change_what_is_scored(photos: Path) -> None:
    (method,) = load_methods([str(TINY)], [])
    default = scores_of(work_of(photos, [method], [2.0]))[0].psnr
    for options in ({"color": "rgb"}, {"border": 7}, {"rounding": "8bit"}, {"degradation": "torch"}, {"jpeg": 75}):
        assert scores_of(work_of(photos, [method], [2.0], **options))[0].psnr != default, options
    assert scores_of(work_of(photos, [method], [2.0], color="y", border=2))[0].psnr == default
    assert abs(scores_of(work_of(photos, [method], [2.0], rounding="8bit"))[0].psnr - default) < 0.05


def test_inputs_may_be_jpeg_files(photos: Path) -> None:
    dataset = find(str(photos), [])
    plain = dataset.pair(dataset.truths[0], 2.0, Protocol())
    pair = dataset.pair(dataset.truths[0], 2.0, Protocol(jpeg=60))
    file = io.BytesIO()
    Image.fromarray(plain.low_res).save(file, "JPEG", quality=60)
    assert np.array_equal(pair.low_res, np.asarray(Image.open(file)))
    assert np.array_equal(pair.high_res, plain.high_res)
    ran = liif("--dataset", photos, "--scales", "2", "-m", "none", "--jpeg", "60")
    assert "Each input was saved as JPEG of quality 60 and read again." in " ".join(ran.stdout.split())
    assert liif("--dataset", photos, "--scales", "2", "--jpeg", "0").exit_code == 2


def test_rounded_scores_are_those_of_the_saved_files(photos: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "saved", tmp_path / "a.csv"
    ran = liif("--dataset", photos, "--scales", "2.5", "-m", TINY, "--baselines", "lanczos", "--rounding", "8bit",
               "--color", "rgb", "--border", 0, "--save-images", out, "--csv", table)  # fmt: skip
    assert ran.exit_code == 0, ran.stderr
    for row in csv.DictReader(io.StringIO(table.read_text())):
        name = row["image"].removesuffix(".png")
        saved = read_rgb(out / "photos" / "x2.5" / row["method"] / f"{name}.png").astype(float)
        truth = read_rgb(photos / row["image"])[: saved.shape[0], : saved.shape[1]]
        assert float(row["psnr"]) == pytest.approx(-10 * np.log10(np.mean((saved - truth) ** 2) / 255**2))


def test_kernels_are_scored_on_8_bit_luma_like_published_tables_only_by_default(photos: Path) -> None:
    kernels = [KernelMethod(name) for name in ("nearest", "bicubic", "lanczos")]
    assert {score.low_res for score in scores_of(work_of(photos, kernels, [2.0]))} == {"luma"}
    for options in ({"rounding": "none"}, {"color": "rgb"}, {"degradation": "matlab"}, {"jpeg": 100}):
        assert {score.low_res for score in scores_of(work_of(photos, kernels, [2.0], **options))} == {"matlab"}


def test_kernels_are_given_inputs_of_the_models_size(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """44 pixels at x2.7 are 16, which are painted as 43: of those a second division would make 15."""
    seen = []
    enlarge = KernelMethod.enlarge

    def look(self: KernelMethod, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        seen.append((image.ndim, image.shape[:2]))
        return enlarge(self, image, size)

    monkeypatch.setattr(KernelMethod, "enlarge", look)
    scores_of(work_of(photos, [KernelMethod("bicubic")], [2.7]))
    assert sorted(size for dimensions, size in seen if dimensions == 2) == [(15, 22), (18, 16)]
    assert sorted(size for dimensions, size in seen if dimensions == 3) == [(15, 22), (18, 16)]


def test_flat_pictures_are_named_where_they_make_means_infinite(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (44, 50), (90, 90, 90)).save(photos / "blank.png")
    ran = liif("--dataset", photos, "--scales", "2", "-m", TINY, "--report", tmp_path / "out")
    assert ran.exit_code == 0
    assert "the same as the truth, so that means are infinite: blank.png; leave flat pictures out" in ran.stderr
    assert "inf dB" not in (tmp_path / "out" / "index.html").read_text()


def test_reduced_copies_are_no_truths_and_div2k_is_known_by_its_folder(photos: Path, tmp_path: Path) -> None:
    div2k = tmp_path / "data" / "DIV2K"
    shutil.copytree(photos, div2k / "DIV2K_valid_HR")
    shutil.copytree(photos, div2k / "DIV2K_valid_LR_bicubic" / "X2")
    shutil.copytree(photos, div2k / "DIV2K_train_HR")
    found = find(str(div2k), [])
    assert (found.title, found.rgb, len(found.truths)) == ("DIV2K", True, len(list(photos.iterdir())))
    shutil.copytree(photos, tmp_path / "mine" / "b")
    shutil.copytree(photos, tmp_path / "mine" / "LR_bicubic" / "X2")
    assert len(find(str(tmp_path / "mine"), []).truths) == len(found.truths)


def test_pages_of_others_and_originals_are_left_alone(photos: Path, tmp_path: Path) -> None:
    words = ("--dataset", photos, "-m", "none", "--scales", "2", "-q")
    (tmp_path / "web").mkdir()
    (tmp_path / "web/index.html").write_text("<h1>mine")
    for more, code, part in (
        (["--report", tmp_path / "web"], 5, "no report of liif's"),
        (["--save-images", photos / "out"], 2, "a folder outside"),
        (["--json", tmp_path / "o", "--csv", tmp_path / "o"], 2, "name two"),
    ):
        ran = liif(*words, *more)
        assert ran.exit_code == code, ran.stderr
        assert part in ran.stderr
    assert (tmp_path / "web/index.html").read_text() == "<h1>mine"
    for _ in range(2):  # its own is replaced
        assert liif(*words, "--report", tmp_path / "page").exit_code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
def test_names_that_are_no_text_are_scored_and_written_down(photos: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(photos, folder)
    outputs = ("--csv", tmp_path / "s.csv", "--report", tmp_path / "page")
    ran = liif("--dataset", folder, "-m", "none", "--scales", "2", "-q", *outputs)
    assert ran.exit_code == 0, ran.stderr
    assert b"caf\xe9" in (tmp_path / "s.csv").read_bytes()


def test_hidden_pictures_are_not_scored(photos: Path) -> None:
    (photos / ".thumbnails").mkdir()
    Image.new("RGB", (3, 3)).save(photos / ".thumbnails" / "a.png")
    assert [truth.name for truth in find(str(photos), []).truths] == ["a.png", "b.png"]


def test_saved_pictures_of_one_stem_are_kept_apart(photos: Path, tmp_path: Path) -> None:
    Image.open(photos / "b.png").save(photos / "a.jpg")
    ran = liif(
        "--dataset", photos, "--scales", "2", "-m", TINY, "--baselines", "none", "--save-images", tmp_path / "out"
    )
    assert ran.exit_code == 0, ran.stderr
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["a.jpg.png", "a.png", "b.png"]


@pytest.mark.parametrize("name", ["nearest", "bicubic", "lanczos"])
def test_kernels_keep_flat_pictures_and_agree_with_pil_inside(name: str) -> None:
    kernel = KernelMethod(name)
    flat = np.full((9, 7, 3), 51, np.uint8)
    np.testing.assert_allclose(kernel.paint(flat, (23, 30)), 0.2, atol=1e-12)
    image = np.random.default_rng(0).integers(60, 190, (20, 24, 3), dtype=np.uint8)
    by_pil = Image.fromarray(image).resize((60, 50), getattr(Image.Resampling, name.upper()))
    difference = kernel.paint(image, (50, 60)) * 255 - np.asarray(by_pil)
    assert np.abs(shaved(difference, 8)).max() <= (1e-9 if name == "nearest" else 1.5)


# --- methods


def tiny(path: Path, spec: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    network = build(spec)
    checkpoint.write(path, Checkpoint(spec, dict(network.state_dict()), {}))
    return path


def encoder(**options: Any) -> dict[str, Any]:
    return {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 8, **options}}


def test_metasr_and_single_scale_networks_are_scored_at_any_scale(photos: Path, tmp_path: Path) -> None:
    metasr = tiny(
        tmp_path / "meta.safetensors",
        {"name": "metasr", "args": {"encoder_spec": encoder(no_upsampling=True)}},
    )
    single = tiny(tmp_path / "single.safetensors", {"name": "liif", "args": {"encoder_spec": encoder(scale=2)}})
    methods = load_methods([str(metasr), str(single), str(TINY)], ["nearest"])
    rows = summarise(scores_of(work_of(photos, methods, [1.5, 2.0, 3.0])))
    names = ["meta", "single", "official_tiny", "nearest"]
    assert [(row.scale, row.method) for row in rows] == [(s, name) for s in (1.5, 2.0, 3.0) for name in names]
    assert all(np.isfinite(row.psnr) for row in rows)


def test_methods_of_one_name_are_told_apart_and_one_named_twice_is_one(tmp_path: Path) -> None:
    spec = {"name": "liif", "args": {"encoder_spec": encoder(scale=2)}}
    first = tiny(tmp_path / "net.safetensors", spec)
    run = tmp_path / "run"
    run.mkdir()
    (run / "net.pth").write_bytes(TINY.read_bytes())
    (run / "model.safetensors").write_bytes(first.read_bytes())
    methods = load_methods([str(first), str(run / "net.pth"), str(run), str(first)], ["bicubic", "bicubic"])
    assert [method.name for method in methods] == ["net", "net (2)", "run", "bicubic"]
    assert methods[0].identity == methods[2].identity != methods[1].identity
    numbered = tmp_path / "net (2).safetensors"
    numbered.write_bytes(first.read_bytes())
    methods = load_methods([str(first), str(numbered), str(run / "net.pth")], [])
    assert [method.name for method in methods] == ["net", "net (2)", "net (3)"]


def test_a_model_that_is_written_while_it_is_read_is_known_by_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny(tmp_path / "net.safetensors", {"name": "liif", "args": {"encoder_spec": encoder(scale=2)}})
    (expected,) = load_methods([str(first)], [])
    later, before = first.read_bytes(), checkpoint.load

    def load_then_write(path: Path) -> Any:
        loaded = before(path)
        first.write_bytes(later)
        return loaded

    other = tiny(tmp_path / "other.safetensors", {"name": "liif", "args": {"encoder_spec": encoder(scale=3)}})
    first.write_bytes(other.read_bytes())
    monkeypatch.setattr(checkpoint, "load", load_then_write)
    (method,) = load_methods([str(first)], [])
    assert method.identity == expected.identity
    assert method.engine.model.native_scale == 2


def test_what_cannot_be_scored_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"unknown baseline 'sinc': use nearest, bicubic, lanczos"):
        load_methods([], ["sinc"])
    with pytest.raises(UsageError, match="nothing to score"):
        load_methods(["none"], [])
    with pytest.raises(ModelError, match="nosuch"):
        load_methods(["nosuch"], [])


def test_scales_are_read_in_order_and_wrong_ones_refused() -> None:
    assert parse_scales("2, x4,2.70,×30,2") == [2.0, 4.0, 2.7, 30.0]
    for text in ("", "2,", "1", "0.5", "two", "-3", "nan", "1e9", "2;4"):
        with pytest.raises(UsageError, match="--scales"):
            parse_scales(text)


# --- keeping and resuming


class Counted(KernelMethod):
    """Bicubic that counts, and is interrupted where it is told to be."""

    def __init__(self, interrupt_at: int = 10**9) -> None:
        super().__init__("bicubic")
        self.painted, self.interrupt_at = 0, interrupt_at

    def paint(self, low_res: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if self.painted == self.interrupt_at:
            raise KeyboardInterrupt
        self.painted += 1
        return super().paint(low_res, size)


class Taker:
    def __init__(self, name: str) -> None:
        self.name, self.taken = name, []

    def wants(self, dataset: Any, truth: Any) -> bool:
        return truth.name == self.name

    def take(self, painted: Any, image: np.ndarray) -> None:
        self.taken.append((painted.truth.name, painted.scale, image.shape))


def test_known_scores_are_not_painted_again_unless_the_picture_is_wanted(photos: Path) -> None:
    method = Counted()
    work = work_of(photos, [method], [2.0, 3.0])
    first = dict(evaluate(work))
    assert method.painted == 4
    assert list(evaluate(work, known=first)) == list(first.items())
    assert method.painted == 4
    taker = Taker("b.png")
    again = scores_of(work, known=first, keepers=[taker])
    assert [score.psnr for score in again] == [score.psnr for score in first.values()]
    assert taker.taken == [("b.png", 2.0, (40, 60, 3)), ("b.png", 3.0, (39, 60, 3))]
    assert method.painted == 6


def test_a_score_is_known_only_for_the_same_picture_method_and_protocol(photos: Path) -> None:
    method = Counted()
    known = dict(evaluate(work_of(photos, [method], [2.0])))
    scores_of(work_of(photos, [method], [2.0], border=3), known=known)
    assert method.painted == 4
    (photos / "a.png").write_bytes((photos / "b.png").read_bytes())
    scores_of(work_of(photos, [method], [2.0]), known=known)
    assert method.painted == 5
    of_more, of_less = (load_methods([str(TINY)], [], memory=memory)[0].identity for memory in ("2G", "1G"))
    assert of_more != of_less  # which took another time


def test_what_was_scored_is_kept_when_a_picture_disappears(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Removing(Counted):
        def paint(self, low_res: np.ndarray, size: tuple[int, int]) -> np.ndarray:
            (photos / "b.png").unlink(missing_ok=True)
            return super().paint(low_res, size)

    monkeypatch.setattr("liif_cli.evaluate.load_methods", lambda *_, **__: [Removing()])
    ran = liif("--dataset", photos, "--scales", "2,3")
    assert ran.exit_code == 1
    assert ran.stderr.count("left out: ") == 1
    assert "means are over the others" in ran.stderr
    assert len(Scorebook(cache / "eval" / "scores.jsonl").read()) >= 2


def test_a_score_is_known_only_for_the_same_low_resolution_file(photos: Path) -> None:
    method, folder = Counted(), photos.parent / "own"
    for below in ("HR", "LR_bicubic/X2"):
        (folder / below).mkdir(parents=True)
    (folder / "HR" / "a.png").write_bytes((photos / "a.png").read_bytes())
    low_res = folder / "LR_bicubic" / "X2" / "ax2.png"
    with Image.open(photos / "a.png") as image:
        half = image.resize((image.width // 2, image.height // 2))
    half.save(low_res)
    known = dict(evaluate(work_of(folder, [method], [2.0])))
    scores_of(work_of(folder, [method], [2.0]), known=known)
    assert method.painted == 1
    half.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(low_res)
    scores_of(work_of(folder, [method], [2.0]), known=known)
    assert method.painted == 2


def test_an_interrupted_run_goes_on_where_it_stopped(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Counted(interrupt_at=5)
    monkeypatch.setattr("liif_cli.evaluate.load_methods", lambda *_, **__: [method])
    arguments = ("--dataset", photos, "--scales", "2,2.5,3", "--json", "-")
    ran = liif(*arguments)
    assert ran.exit_code == 130
    assert "5 of 6 scores are kept; the same command with --resume goes on" in ran.stderr
    assert len(Scorebook(cache / "eval" / "scores.jsonl").read()) == 5
    method.interrupt_at = 10**9
    ran = liif(*arguments, "--resume")
    assert ran.exit_code == 0
    assert method.painted == 6
    resumed = json.loads(ran.stdout)
    whole = json.loads(liif(*arguments).stdout)
    for one, other in zip(resumed["scores"], whole["scores"], strict=True):
        assert (one["image"], one["scale"], one["psnr"]) == (other["image"], other["scale"], other["psnr"])


def test_a_book_that_a_kill_cut_short_keeps_its_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = Score("m", "kernel", "d", 2.0, "a", 30.0, 0.9, None, 0.1, 5, 4, 3, "pil")
    book = Scorebook(tmp_path / "deep" / "scores.jsonl")
    with book:
        book.add("one", score)
    whole = book.path.read_text()
    book.path.write_text(whole + whole.strip()[:40])
    with book:
        book.add("two", score._replace(psnr=float("inf")))
    assert book.read() == {"one": score, "two": score._replace(psnr=float("inf"))}
    book.path.write_text(whole.replace(__version__, "0.0.0") + "[]\n{}\n1\n")
    assert book.read() == {}
    book.path.write_text(whole)
    monkeypatch.setattr(scorebook, "_version", lambda: f"{__version__}+other")  # another state of a checkout
    assert Scorebook(book.path).read() == {}
    monkeypatch.setattr(scorebook, "_LARGEST_BYTES", 10)
    with Scorebook(book.path) as other:
        assert other.is_kept
    assert book.path.read_text() == ""


def test_a_book_on_a_full_disk_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no file that is always full")
    score = Score("m", "kernel", "d", 2.0, "a", 30.0, 0.9, None, 0.1, 5, 4, 3, "pil")
    with Scorebook(Path("/dev/full")) as book:
        assert book.is_kept
        book.add("one", score)
        assert not book.is_kept
        book.add("two", score)


def test_kernels_take_a_picture_of_one_channel_as_published_tables_do(tmp_path: Path) -> None:
    """Its levels count as they are, not as the luma of an RGB picture, which has fewer."""
    grey = photo(60, 80, 1)[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).convert("RGB").save(tmp_path / "b.png")
    work = work_of(tmp_path, [KernelMethod("bicubic")], [2.0])
    as_it_is, as_rgb = (each.psnr for each in scores_of(work))
    levels = grey.astype(float)
    enlarged = np.rint(np.clip(matlab_bicubic(matlab_bicubic(levels, (30, 40)), (60, 80)), 0, 255))
    error = np.mean((enlarged - levels)[2:-2, 2:-2] ** 2)
    assert as_it_is == pytest.approx(10 * np.log10(255**2 / error), abs=0.02)
    assert as_rgb - as_it_is > 0.5


def test_folders_that_are_passed_over_are_named(photos: Path) -> None:
    (photos / "LR_export").mkdir()
    Image.new("RGB", (40, 40), "red").save(photos / "LR_export" / "c.png")
    ran = liif("--dataset", photos, "--scales", "2", "-m", "none")
    assert ran.exit_code == 0
    assert "LR_export: passed over" in ran.stderr


def test_a_folders_picture_that_cannot_be_read_is_left_out_and_told(photos: Path, tmp_path: Path) -> None:
    whole = json.loads(liif("--dataset", photos, "--scales", "2,3", "-m", "none", "--json", "-").stdout)
    (photos / "aa.png").write_bytes((photos / "a.png").read_bytes()[:200])
    out = tmp_path / "out.json"
    ran = liif("--dataset", photos, "--scales", "2,3", "-m", "none", "--json", out, "--report", tmp_path / "report")
    assert ran.exit_code == 1
    assert ran.stderr.count("left out: ") == 1
    assert "aa.png: is cut short" in ran.stderr
    assert ran.stderr.splitlines()[-1].endswith(
        "aa.png: is cut short; get the whole file again; means are over the others"
    )
    content = json.loads(out.read_text())
    assert [Path(name).name for name in content["left_out"]] == ["aa.png"]
    assert [(row["images"], row["psnr"]) for row in content["rows"]] == [
        (row["images"], row["psnr"]) for row in whole["rows"]
    ]
    assert (tmp_path / "report" / "index.html").is_file()
    for name in ("a.png", "b.png"):
        (photos / name).unlink()
    ran = liif("--dataset", photos, "--scales", "2,3", "-m", "none")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "aa.png: is cut short" in ran.stderr


def test_a_benchmarks_picture_that_cannot_be_read_ends_the_run_and_keeps_the_rest(photos: Path, cache: Path) -> None:
    (photos / "c.png").write_bytes((photos / "a.png").read_bytes()[:200])
    photos.rename(photos.parent / "HR")
    (photos.parent / "Set5").mkdir()
    (photos.parent / "HR").rename(photos.parent / "Set5" / "HR")
    ran = liif("--dataset", photos.parent / "Set5", "--scales", "2", "-m", "none")
    assert ran.exit_code == 1
    assert "c.png: is cut short" in ran.stderr
    assert len(Scorebook(cache / "eval" / "scores.jsonl").read()) >= 2


# --- the command


def test_json_csv_and_table_agree(photos: Path, tmp_path: Path) -> None:
    json_file, csv_file = tmp_path / "a.json", tmp_path / "a.csv"
    ran = liif("--dataset", photos, "--scales", "2,2.5", "-m", TINY, "--json", json_file, "--csv", csv_file)
    assert ran.exit_code == 0, ran.stderr
    content = json.loads(json_file.read_text())
    assert content.keys() == {"rows", "scores", "left_out", "protocol", "computed", "version"}
    assert content["computed"] == {"official_tiny": "float32 on cpu"}
    assert "Computed in" not in ran.stdout
    assert (
        "Computed in bfloat16 on cpu."
        in liif("--dataset", photos, "--scales", "2", "-m", TINY, "--precision", "bfloat16").stdout
    )
    assert content["version"] == __version__
    assert content["protocol"] == {
        "name": "paper", "color": "auto", "border": None, "rounding": "paper", "degradation": "paper",
        "jpeg": None,
    }  # fmt: skip
    by_picture = list(csv.DictReader(io.StringIO(csv_file.read_text())))
    assert len(by_picture) == len(content["scores"]) == 2 * 2 * 2
    for row in content["rows"]:
        own = [
            float(each["psnr"])
            for each in by_picture
            if each["method"] == row["method"] and float(each["scale"]) == row["scale"]
        ]
        assert row.keys() >= {"method", "dataset", "scale", "images", "psnr", "ssim", "seconds", "peak_memory_bytes"}
        assert (row["dataset"], row["images"], row["psnr"]) == ("photos", 2, pytest.approx(np.mean(own)))
        assert f"{row['psnr']:.2f}" in ran.stdout
    assert "\x1b" not in ran.stdout
    assert "at x2 MATLAB's bicubic, 8 bits; at x2.5 PIL's bicubic, 8 bits" in ran.stdout


@pytest.mark.parametrize("width", [40, 60, 200])
def test_the_table_fits_its_terminal_and_shows_every_scale(photos: Path, width: int, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    ran = liif("--dataset", photos, "--scales", "1.5,2,2.5,3,3.5,4", "-m", "none", "--baselines", "bicubic,lanczos")
    assert ran.exit_code == 0, ran.stderr
    assert max(map(len, ran.stdout.splitlines())) <= width
    for scale in ("x1.5", "x2", "x2.5", "x3", "x3.5", "x4"):
        assert any(scale in line.split() for line in ran.stdout.splitlines())


@needs_benchmark
def test_published_scores_stand_beside_and_only_beside_what_follows_their_protocol() -> None:
    run = ("--dataset", "set5", "--data", DATA, "--scales", "3,4", "-m", "none", "--published")
    markdown = liif(*run, "--markdown").stdout
    assert "| bicubic | **30.39**" not in markdown  # nothing to be better than
    assert "| bicubic | 30.39 | 28.42 |" in markdown
    assert "| *RDN-LIIF, in print* | 34.68 | 32.50 |" in markdown
    assert "in print" in liif(*run).stdout
    other = liif(*run, "--border", 2)
    assert "in print" not in other.stdout
    assert "scores in print are left out" in other.stderr


@needs_benchmark
def test_a_benchmark_of_which_pictures_are_missing_is_not_held_against_published_scores(tmp_path: Path) -> None:
    whole = find("set5", [DATA]).truths
    (tmp_path / "Set5" / "HR").mkdir(parents=True)
    for truth in whole[1:]:
        (tmp_path / "Set5" / "HR" / truth.path.name).symlink_to(truth.path.resolve())
    ran = liif("--dataset", "set5", "--data", tmp_path, "--scales", "4", "-m", "none", "--published", "--markdown")
    assert "in print*" not in ran.stdout
    assert "Set5 has 5 pictures, not 4, so that nothing in print compares." in ran.stdout


def test_a_picture_too_small_is_left_out_of_a_folder(photos: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(photos / "c.png")
    ran = liif("--dataset", photos, "--scales", "2", "-m", "none", "--json", "-")
    assert ran.exit_code == 1
    assert "left out: " in ran.stderr
    assert "c.png: too small for x2" in ran.stderr
    assert {score["image"] for score in json.loads(ran.stdout)["scores"]} == {"a.png", "b.png"}
    Image.new("RGB", (25, 25), "red").save(photos / "c.png")  # too small for one scale only, whichever comes first
    ran = liif("--dataset", photos, "--scales", "8,2", "-m", "none", "--json", "-")
    found = {(score["image"], score["scale"]) for score in json.loads(ran.stdout)["scores"]}
    assert ("c.png", 2) in found
    assert ("c.png", 8) not in found


def test_a_folder_of_a_benchmarks_name_is_not_held_against_published_scores(photos: Path, tmp_path: Path) -> None:
    for below in ("Set14", "DIV2K/HR"):
        (tmp_path / below).mkdir(parents=True)
        (tmp_path / below / "a.png").write_bytes((photos / "a.png").read_bytes())
        folder = tmp_path / Path(below).parts[0]
        ran = liif("--dataset", folder, "--scales", "2", "-m", "none", "--published", "--markdown")
        assert "| bicubic |" in ran.stdout
        assert "in print" not in ran.stdout.replace("nothing in print compares", "")


def test_outputs_may_lie_in_the_reports_folder(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = liif("--dataset", photos, "--scales", "2", "-m", "none", "--report", out, "--csv", out / "scores.csv")
    assert ran.exit_code == 0
    assert {path.name for path in out.iterdir()} == {"index.html", "scores.csv"}
    page = (out / "index.html").read_text()
    assert '<figure class="curve">' not in page  # of one scale; the style hides the section
    assert ".holds:not(:has(.curve)) { display: none; }" in page
    assert '<section class="holds"' in page


def test_equal_pictures_are_infinitely_good_and_the_json_stays_json(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (9, 99, 199)).save(tmp_path / "flat.png")
    ran = liif("--dataset", tmp_path, "--scales", "2", "-m", "none", "--json", "-")
    (row,) = json.loads(ran.stdout)["rows"]
    assert row["psnr"] is None
    assert "inf" in liif("--dataset", tmp_path, "--scales", "2", "-m", "none").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--dataset", "nosuch"], 2, ["nosuch", "set5, set14", "folder"]),
        (["--dataset", "set14"], 1, ["set14", "--data", "--fetch"]),
        (["--dataset", "{photos}", "--scales", "25"], 1, ["a.png", "x25", "44"]),
        (["--dataset", "{photos}", "--scales", "1"], 2, ["--scales"]),
        (["--dataset", "{photos}", "-m", "nosuch"], 3, ["nosuch"]),
        (["--dataset", "{photos}", "--baselines", "sinc"], 2, ["sinc"]),
        (["--dataset", "{photos}", "--rounding", "up"], 2, ["up", "8bit"]),
        (["--dataset", "{photos}", "--json", "{photos}/no/a.json"], 5, ["a.json"]),
        (["--dataset", "{photos}", "--report", "{photos}/a.png"], 5, ["a.png"]),
        (["--dataset", "{photos}", "--json", "-", "--csv", "-"], 2, ["standard output"]),
        (["--dataset", "{photos},{photos}/."], 2, ["photos"]),
        (["--dataset", "{photos}", "--memory", "1M"], 4, ["memory"]),
    ],
)
def test_wrong_input_is_one_line_and_its_exit_code(
    photos: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    ran = liif(*(text.format(photos=photos) for text in arguments))
    assert ran.exit_code == code, ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stdout == ""
    for word in words:
        assert word in ran.stderr


def test_quiet_prints_nothing_and_verbose_every_picture(photos: Path) -> None:
    run = ("--dataset", photos, "--scales", "2", "-m", "none")
    silent = liif(*run, "-q")
    assert (silent.exit_code, silent.stdout, silent.stderr) == (0, "", "")
    assert "photos x2 b.png: bicubic" in liif(*run, "-v").stderr


def test_its_help_needs_no_torch() -> None:
    code = "import sys; from liif_cli.cli import app; app(['eval', '--help'], standalone_mode=False); " \
           "sys.exit('torch' in sys.modules)"  # fmt: skip
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for option in ("--dataset", "--scales", "--baselines", "--published", "--report", "--resume", "--degradation"):
        assert option in ran.stdout


# --- LPIPS


def fake_lpips(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]) -> None:
    module = types.ModuleType("lpips")
    module.LPIPS = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)


def test_lpips_without_its_extra_says_how_to_get_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    ran = liif("--dataset", photos, "--scales", "2", "-m", "none", "--lpips")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "pip install lpips" in ran.stderr


def test_lpips_is_given_pictures_from_minus_one_to_one_and_shown_beside(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Network(torch.nn.Module):
        def __init__(self, **_: Any) -> None:
            super().__init__()

        def forward(self, image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            assert image.shape == truth.shape
            assert truth.min() < -0.5
            assert image.abs().max() <= 1
            return (image - truth).abs().mean()

    fake_lpips(monkeypatch, Network)
    white, black = np.ones((40, 33, 3), np.float32), np.zeros((40, 33, 3), np.float32)
    assert Lpips()(white, black) == 2.0
    with pytest.raises(InputError, match=r"20x40 pixels.*32 a side.*leave --lpips out"):
        Lpips()(white[:, :20], black[:, :20])
    ran = liif("--dataset", photos, "--scales", "2", "-m", "none", "--lpips", "--csv", "-")
    assert all(0 < float(row["lpips"]) < 1 for row in csv.DictReader(io.StringIO(ran.stdout)))
    ran = liif("--dataset", photos, "--scales", "2", "-m", "none", "--lpips", "--report", photos.parent / "page")
    said = "PSNR in decibels, then SSIM (1 is the original itself), then LPIPS (0 is the original itself), then seconds"
    assert said in (photos.parent / "page" / "index.html").read_text()
    (photos / "b.png").unlink()
    Image.new("RGB", (60, 34)).save(photos / "small.png")
    ran = liif("--dataset", photos, "--scales", "2", "-m", "none", "--lpips")
    assert ran.exit_code == 1
    assert "small.png: too small for x2: of its shorter side of 34 pixels 30 are left" in ran.stderr
    assert "32 are needed" in ran.stderr


def test_an_error_of_painting_names_the_picture_and_the_model(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, *_: Any) -> None:
        raise MemoryBudgetError("too little")

    monkeypatch.setattr(ModelMethod, "paint", refuse)
    ran = liif("--dataset", photos, "--scales", "2", "-m", TINY, "--baselines", "none")
    assert (ran.exit_code, ran.stdout) == (4, "")
    assert f"{photos / 'a.png'}, {TINY.stem}: too little" in ran.stderr


def test_lpips_without_its_weights_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise OSError("no route\nto host")

    fake_lpips(monkeypatch, fail)
    with pytest.raises(ModelError, match=r"weights cannot be loaded: no route; run without"):
        Lpips()


def test_rows_are_means_and_the_largest_memory() -> None:
    score = Score("m", "kernel", "d", 2.0, "a", 30.0, 0.9, None, 0.1, 5, 4, 3, "pil")
    (row,) = summarise([score, score._replace(image="b", psnr=32.0, ssim=0.7, seconds=0.3, peak_memory_bytes=9)])
    assert row == Row("m", "kernel", "d", 2.0, 2, 31.0, pytest.approx(0.8), None, pytest.approx(0.2), 9, "pil")


def test_a_model_method_asks_the_engine_and_nothing_else() -> None:
    (method,) = load_methods([str(TINY)], [])
    assert isinstance(method, ModelMethod)
    image = np.random.default_rng(1).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    painted = method.paint(image, (31, 40))
    np.testing.assert_array_equal(painted, np.concatenate(list(method.engine.bands(image, (31, 40)))))


def test_a_known_set_is_known_by_the_folder_of_its_originals(tmp_path):
    save(tmp_path / "benchmark/Set5/HR/a.png", photo(48, 48))
    found = find(str(tmp_path / "benchmark/Set5/HR"), ())
    assert (found.title, found.rgb, [truth.name for truth in found.truths]) == ("Set5", False, ["a"])


@pytest.mark.parametrize("name", ["ax2.png", "a.png", "a.bmp", "ax2.bmp"])
def test_low_resolution_files_are_known_by_either_name(tmp_path, name):
    save(tmp_path / "Set5/HR/a.png", photo(48, 48))
    small = save(tmp_path / "Set5/LR_bicubic/X2" / name, photo(24, 24, seed=1))
    found = find("set5", [tmp_path])
    assert found.low_res_file(found.truths[0], 2, Protocol()) == small


def test_reduced_copies_beside_their_originals_are_not_scored(tmp_path):
    for name in ("img_001_SRF_2_HR.png", "img_001_SRF_2_LR.png", "alone_LR.png"):
        save(tmp_path / "set" / name, photo(48, 48))
    save(tmp_path / "set/LRbicx2/img_001.png")
    save(tmp_path / "set/LRbicx4/img_001.png")
    found = find(str(tmp_path / "set"), ())
    assert [truth.name for truth in found.truths] == ["alone_LR.png", "img_001_SRF_2_HR.png"]


def test_a_run_without_a_model_is_no_model(cli, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    save(tmp_path / "photos/a.png", photo(48, 48))
    ran = cli("eval", "--dataset", "photos", "--scales", "2", "-m", "run")
    assert ran.code == 3
    assert "run: a folder without model.safetensors" in ran.err
