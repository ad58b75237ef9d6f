"""Settings are typed and closed, recipes build on one another, and any value can be changed."""

import dataclasses
import json

import pytest

from liif_cli.config import TrainConfig, check, load_train, presets, to_mapping
from liif_cli.errors import UsageError
from liif_cli.models import build
from liif_cli.models.liif import LIIF
from liif_cli.models.metasr import MetaSR
from liif_cli.models.single_scale import SingleScale

PAPER = load_train("edsr-baseline-liif")


@pytest.mark.parametrize("name", presets())
def test_every_recipe_is_valid_says_what_it_is_and_survives_being_saved(name, tmp_path):
    config = load_train(name)
    assert config.description
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(to_mapping(config)))
    assert load_train(str(saved)) == config


def test_the_papers_recipe_is_what_the_paper_says():
    assert PAPER.optimiser.name == "adam"
    assert PAPER.optimiser.learning_rate == 1e-4
    assert (PAPER.batch, PAPER.sample.low_res_side, PAPER.sample.queries) == (16, 48, 2304)
    assert (PAPER.sample.scale_min, PAPER.sample.scale_max) == (1, 4)
    assert (PAPER.iterations, PAPER.schedule.milestones, PAPER.schedule.factor) == (10**6, (0.2, 0.4, 0.6, 0.8), 0.5)
    assert (PAPER.ema, PAPER.precision, PAPER.optimiser.clip_norm, PAPER.optimiser.skip_loss) == (0, "float32", 0, 0)
    assert PAPER.sample.largest_crop == 192
    assert sum(p.numel() for p in build(PAPER.model).parameters() if p.requires_grad) == 1_567_323 - 24


@pytest.mark.parametrize(
    ("name", "attribute"), [("c", "cell_decode"), ("u", "feat_unfold"), ("e", "local_ensemble"), ("d", None)]
)
def test_each_ablation_switches_one_thing_off(name, attribute):
    config = load_train(f"edsr-baseline-liif-{name}")
    model, full = build(config.model), build(PAPER.model)
    assert isinstance(model, LIIF)
    for switch in ("cell_decode", "feat_unfold", "local_ensemble"):
        assert getattr(model, switch) == (switch != attribute)
    assert len(model.imnet.linears) == (3 if name == "d" else len(full.imnet.linears))
    assert dataclasses.replace(config, model=PAPER.model, description=PAPER.description) == PAPER


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_ablations_and_single_models_of_one_scale_train_at_it(scale):
    ablation = load_train(f"edsr-baseline-liif-x{scale}")
    assert ablation.model == PAPER.model
    for name in (f"edsr-baseline-x{scale}", f"rdn-x{scale}"):
        config = load_train(name)
        model = build(config.model)
        assert isinstance(model, SingleScale)
        assert model.native_scale == scale == config.sample.scale_min == config.sample.scale_max
        assert config.sample.queries == 0
    assert ablation.sample.scale_min == ablation.sample.scale_max == scale


def test_other_networks_replace_the_inherited_one_whole():
    assert isinstance(build(load_train("edsr-baseline-metasr").model), MetaSR)
    assert load_train("rdn-metasr").model["args"]["encoder_spec"]["name"] == "rdn"
    assert "imnet_spec" not in load_train("rdn-metasr").model["args"]
    modern = load_train("liif-base")
    assert modern.model == PAPER.model
    assert modern.optimiser == load_train("liif-light").optimiser
    faces = load_train("faces-64-128-upsample")
    assert (faces.sample.size_min, faces.sample.size_max, faces.sample.truth_side) == (64, 128, 128)
    assert (faces.schedule.milestones, faces.schedule.factor) == ((0.5,), 0.1)


def test_a_file_extends_a_recipe_or_another_file(tmp_path):
    (tmp_path / "first.toml").write_text('extends = "liif-light"\nbatch = 32\n[optimiser]\nclip_norm = 0.5\n')
    (tmp_path / "second.toml").write_text('extends = "first.toml"\n[schedule]\nname = "step"\n')
    config = load_train(str(tmp_path / "second.toml"), ["seed=3"])
    light = load_train("liif-light")
    assert (config.batch, config.seed, config.optimiser.clip_norm) == (32, 3, 0.5)
    assert config.optimiser.muon_rate == light.optimiser.muon_rate  # merged
    assert config.schedule.warmup == 0  # another schedule: nothing of the other's remains
    (tmp_path / "loop.toml").write_text('extends = "./loop.toml"\n')
    with pytest.raises(UsageError, match="extends itself"):
        load_train(str(tmp_path / "loop.toml"))


def test_values_are_changed_by_key():
    config = load_train(
        "liif-light",
        ["iterations=2e4", "optimiser.learning_rate=1", "precision=bfloat16", "schedule.milestones=[0.5, 1]",
         "model.args.imnet_spec.args.hidden_list=[64]"],
    )  # fmt: skip
    assert config.iterations == 20_000
    assert isinstance(config.iterations, int)
    assert isinstance(config.optimiser.learning_rate, float)
    assert config.precision == "bfloat16"
    assert config.schedule.milestones == (0.5, 1.0)
    assert config.model["args"]["imnet_spec"]["args"]["hidden_list"] == [64]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("speed=3", ["unknown setting 'speed'", "iterations"]),
        ("iteration=3", ["did you mean iterations?"]),
        ("optimiser.momentum=0.9", ["momentum", "learning_rate"]),
        ("iterations=0", ["iterations = 0", "at least 1"]),
        ("iterations=many", ["iterations", "whole number", "'many'"]),
        ("iterations=1.5", ["iterations", "1.5"]),
        ("batch=true", ["batch", "True"]),
        ("optimiser.name=sgd", ["'sgd'", "adam, muon"]),
        ("sample.kind=picture", ["sample.augment = 'all'", "use none"]),
        ("seed=9223372036854775808", ["seed = 9223372036854775808", "below 2**63"]),
        ("schedule.name=line", ["'line'", "cosine, step"]),
        ("precision=float8", ["'float8'", "bfloat16"]),
        ("sample.kind=patches", ["'patches'", "crops"]),
        ("sample.scale_law=even", ["'even'", "uniform, log"]),
        ("sample.jpeg_share=2", ["sample.jpeg_share = 2.0", "1 at most"]),
        ("sample.synthetic_share=2", ["sample.synthetic_share = 2.0", "1 at most"]),
        ("sample.synthetic_share=-1", ["sample.synthetic_share = -1.0", "at least 0"]),
        ("sample.jpeg_min=97", ["sample.jpeg_max", "97"]),
        ("sample.jpeg_max=101", ["sample.jpeg_max = 101", "up to 100"]),
        ("sample.scale_max=0.5", ["sample.scale_max", "0.5"]),
        ("sample.scale_max=1e308", ["sample.scale_max = 1e+308", "65536 pixels"]),
        ("optimiser.learning_rate=nan", ["learning_rate", "nan"]),
        ("optimiser.learning_rate=-1", ["learning_rate", "-1"]),
        ("ema=1", ["ema", "below 1"]),
        ("accumulate=5", ["accumulate", "36"]),
        ("sample.queries=0", ["every pixel"]),
        ("sample=3", ["table of settings"]),
        ("batch.size=3", ["'batch' is not a table"]),
        ("schedule.milestones=3", ["milestones", "list"]),
        ("batch", ["key=value"]),
        ("=3", ["key=value"]),
        (f"optimiser.learning_rate=1{'0' * 400}", ["learning_rate", "too large a number"]),
        (f"sample.low_res_side=1{'0' * 400}", ["low_res_side", "too large a number"]),
        (f"seed={'9' * 5000}", ["seed", "a whole number"]),
        (f"model={'[' * 3000}", ["model", "a table of settings"]),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(override, words):
    with pytest.raises(UsageError) as error:
        load_train("liif-light", [override])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_unknown_recipes_and_broken_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean rdn-liif"):
        load_train("rdn-lif")
    with pytest.raises(UsageError, match="cannot be read"):
        load_train(str(tmp_path / "absent.toml"))
    (tmp_path / "broken.toml").write_text("a = = b")
    with pytest.raises(UsageError, match="not TOML"):
        load_train(str(tmp_path / "broken.toml"))
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(UsageError, match="'model' is missing"):
        load_train(str(tmp_path / "empty.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not text"):
        load_train(str(tmp_path / "binary.toml"))


def test_defaults_are_valid_themselves():
    assert check(TrainConfig(model=PAPER.model)).batch == 16


def test_files_that_extend_each_other_by_other_ways_are_recognised(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below/a.toml").write_text('extends = "../below/a.toml"')
    with pytest.raises(UsageError, match="extends itself"):
        load_train(str(tmp_path / "below/a.toml"))
    (tmp_path / "b.toml").write_text('extends = "a\\u0000.toml"')
    with pytest.raises(UsageError, match="cannot be read"):
        load_train(str(tmp_path / "b.toml"))
