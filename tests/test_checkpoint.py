"""Checkpoints hold what was put in, fit their network exactly, and never run code."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save, save_file

from liif_cli import checkpoint, coords
from liif_cli.checkpoint import Checkpoint
from liif_cli.errors import ModelError, OutputError
from liif_cli.models import build

TINY = Path(__file__).parent / "data" / "official_tiny.pth"

DATA = Path(__file__).parent / "data"
SPEC = {
    "name": "liif",
    "args": {
        "encoder_spec": {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}},
        "imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [5]}},
    },
}
FACTS = {"training": {"iteration": 7}, "scores": {"Set5": {"x2": 37.5}}}


def made():
    torch.manual_seed(0)
    return Checkpoint(SPEC, build(SPEC).state_dict(), FACTS)


@torch.no_grad()
def test_an_official_checkpoint_gives_the_official_answer():
    model = checkpoint.load(DATA / "official_tiny.pth")
    image = np.load(DATA / "official_parity.npz")["image"]
    expected = np.load(DATA / "official_tiny_26x34.npy")
    low_res = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    rows, columns = coords.axis(26, image.shape[0]), coords.axis(34, image.shape[1])
    field = model.fold(model.encode(low_res), torch.tensor([rows.cell, columns.cell]))
    got = (field.paint(rows, columns).numpy() - 0.5) / 0.5
    assert np.abs(got.reshape(expected.shape) - expected).max() < 2e-5 * np.abs(expected).max()


def test_what_is_written_is_read(tmp_path):
    written = made()
    checkpoint.write(tmp_path / "a.safetensors", written)
    read = checkpoint.read(tmp_path / "a.safetensors")
    assert read.spec == SPEC
    assert read.facts == FACTS
    assert read.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in written.tensors.items())
    model = checkpoint.load(tmp_path / "a.safetensors")
    assert not model.training
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_half_precision_keeps_what_half_precision_can(tmp_path):
    written = made()
    checkpoint.write(tmp_path / "half.safetensors", written, half=True)
    assert all(t.dtype == torch.float16 for t in checkpoint.read(tmp_path / "half.safetensors").tensors.values())
    for name, value in checkpoint.load(tmp_path / "half.safetensors").state_dict().items():
        assert torch.equal(value, written.tensors[name].half().float())


def test_weights_of_any_memory_layout_are_written(tmp_path):
    model = build(SPEC).to(memory_format=torch.channels_last)
    checkpoint.write(tmp_path / "a.safetensors", Checkpoint(SPEC, model.state_dict(), {}))
    for name, value in checkpoint.load(tmp_path / "a.safetensors").state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_a_runs_folder_stands_for_its_model(tmp_path):
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        checkpoint.read(tmp_path)
    checkpoint.write(tmp_path / checkpoint.RUN_MODEL, made())
    assert checkpoint.read(tmp_path).spec == SPEC


def test_nothing_is_replaced_unasked(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, made())
    before = path.read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        checkpoint.write(path, made())
    assert path.read_bytes() == before
    checkpoint.write(path, made(), half=True, overwrite=True)
    assert path.stat().st_size < len(before)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_tensors_that_are_missing_surplus_or_misshapen_are_named(tmp_path, suffix):
    tensors = dict(made().tensors)
    del tensors["imnet.layers.0.bias"]
    tensors["imnet.layers.9.bias"] = torch.zeros(3)
    tensors["encoder.head.0.weight"] = torch.zeros(4, 3, 5, 5)
    path = tmp_path / f"a.{suffix}"
    if suffix == "pth":
        torch.save({"model": {**SPEC, "sd": tensors}, "epoch": 3}, path)
    else:
        checkpoint.write(path, Checkpoint(SPEC, tensors, {}))
    with pytest.raises(ModelError) as error:
        checkpoint.load(path)
    text = str(error.value)
    assert "missing imnet.layers.0.bias" in text
    assert "surplus imnet.layers.9.bias" in text
    assert "encoder.head.0.weight is (4, 3, 5, 5), not (4, 3, 3, 3)" in text


def test_many_wrong_tensors_make_one_line(tmp_path):
    checkpoint.write(tmp_path / "a.safetensors", Checkpoint(SPEC, {"other": torch.zeros(1)}, {}))
    with pytest.raises(ModelError, match=r"and \d+ more"):
        checkpoint.load(tmp_path / "a.safetensors")


def test_values_that_are_not_numbers_are_refused(tmp_path):
    tensors = dict(made().tensors)
    tensors["imnet.layers.0.bias"] = torch.full((5,), torch.nan)
    checkpoint.write(tmp_path / "a.safetensors", Checkpoint(SPEC, tensors, {}))
    with pytest.raises(ModelError, match=r"imnet\.layers\.0\.bias"):
        checkpoint.load(tmp_path / "a.safetensors")


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    device = property(lambda self: torch.device("cuda"))


def test_a_network_is_restored_from_wherever_its_tensors_are():
    """As a run on a GPU has them when it is scored."""
    tensors = {name: tensor.as_subclass(Elsewhere) for name, tensor in made().tensors.items()}
    model = checkpoint.restore(Checkpoint(SPEC, tensors, {}), "this run")
    assert all(torch.equal(value, made().tensors[name]) for name, value in model.state_dict().items())
    nowhere = {name: tensor.to("meta") for name, tensor in made().tensors.items()}
    with pytest.raises(ModelError, match="no plain tensor"):
        checkpoint.restore(Checkpoint(SPEC, nowhere, {}), "this run")


class Malicious:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), "w")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"model": {**SPEC, "sd": {"zeros": torch.zeros(1000)}}}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as deflated:
        for record in source.infolist():
            deflated.writestr(record.filename, source.read(record))
    with pytest.raises(ModelError, match=r"b\.pth: refused: a compressed archive"):
        checkpoint.read(tmp_path / "b.pth")


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_a_checkpoint_that_wants_to_run_code_is_refused_and_does_not(tmp_path, how):
    victim, path = tmp_path / "victim", tmp_path / "bad.pth"
    content = {"model": {**SPEC, "sd": made().tensors}, "optimizer": Malicious(victim)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content["optimizer"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ModelError):
        checkpoint.read(path)
    assert not victim.exists()
    if how == "torch":
        with pytest.raises(ModelError, match="refused"):
            checkpoint.read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint at all, just text",
        b"PK\x03\x04 broken",
        b"\x80\x02 broken",
        b"\x08\0\0\0\0\0\0\0{broken}",
    ],
    ids=["empty", "text", "zip", "pickle", "safetensors"],
)
def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.pth") as error:
        checkpoint.read(path)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3


def test_a_truncated_checkpoint_is_damaged(tmp_path):
    checkpoint.write(tmp_path / "a.safetensors", made())
    torch.save({"model": {**SPEC, "sd": made().tensors}}, tmp_path / "b.pth")
    for path in list(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ModelError, match="damaged"):
            checkpoint.read(path)


def test_others_safetensors_are_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="not written by liif"):
        checkpoint.read(tmp_path / "a.safetensors")
    header = {"format": checkpoint.FORMAT, "spec": json.dumps({"name": "vgg"}), "facts": "{}"}
    save_file({"weight": torch.zeros(3)}, tmp_path / "b.safetensors", metadata=header)
    with pytest.raises(ModelError, match="vgg"):
        checkpoint.load(tmp_path / "b.safetensors")


@pytest.mark.parametrize("model", [None, {"name": "liif"}, {**SPEC, "sd": {"a": 3}}, {**SPEC, "sd": []}])
def test_a_pth_of_something_else_is_refused(tmp_path, model):
    torch.save({"model": model}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="not a LIIF checkpoint"):
        checkpoint.read(tmp_path / "a.pth")
    torch.save([1, 2], tmp_path / "b.pth")
    with pytest.raises(ModelError, match="not a LIIF checkpoint"):
        checkpoint.read(tmp_path / "b.pth")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        checkpoint.read(tmp_path / "absent.pth")


@pytest.mark.parametrize(("name", "value"), [("n_feats", 4000), ("n_resblocks", 100_000)])
def test_a_network_far_larger_than_its_file_is_refused_before_it_is_built(tmp_path, name, value):
    spec = json.loads(json.dumps(SPEC))
    spec["args"]["encoder_spec"]["args"][name] = value
    checkpoint.write(tmp_path / "a.safetensors", Checkpoint(spec, {"other": torch.zeros(1)}, {}))
    with pytest.raises(ModelError, match=rf"its {name} of {value} is more than its 1 tensors can fill"):
        checkpoint.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", ["x", None, [1], float("nan"), 1e39, True])
def test_a_factor_that_is_no_number_is_refused(value):
    spec = json.loads(json.dumps(SPEC))
    spec["args"]["encoder_spec"]["args"]["res_scale"] = value
    with pytest.raises(ModelError, match="res_scale"):
        build(spec)


@pytest.mark.parametrize("facts", ["[]", "1", '"x"', "[" * 100_000])
def test_facts_that_are_no_table_are_damage(tmp_path, facts):
    header = {"format": checkpoint.FORMAT, "spec": json.dumps(SPEC), "facts": facts}
    (tmp_path / "a.safetensors").write_bytes(save({"w": torch.zeros(1)}, metadata=header))
    with pytest.raises(ModelError, match="damaged"):
        checkpoint.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("tensor", [torch.zeros(3, 3).to_sparse(), torch.zeros(1, dtype=torch.complex64)])
def test_tensors_of_odd_kinds_are_refused(tmp_path, tensor):
    torch.save({"model": {"name": "liif", "args": SPEC["args"], "sd": {"w": tensor}}}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="w is no plain tensor"):
        checkpoint.load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "encoder",
    [
        {"name": "rcan", "args": {"n_resgroups": 64, "n_resblocks": 64, "n_feats": 256, "no_upsampling": True}},
        {"name": "rdn", "args": {"RDNkSize": 4097, "no_upsampling": True}},
        {"name": "edsr-baseline", "args": {"n_feats": 5000, "no_upsampling": True}},
    ],
    ids=["many blocks", "wide kernels", "many channels"],
)
def test_a_network_that_its_tensors_cannot_fill_takes_no_memory(tmp_path, encoder):
    """Neither by numbers that are each moderate, nor by tensors that are larger than what is stored of them."""
    args = {"encoder_spec": encoder, "imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [4]}}}
    before = psutil.Process().memory_info().rss
    for tensor in (torch.zeros(1), torch.zeros(1).expand(5000, 5000)):
        torch.save({"model": {"name": "liif", "args": args, "sd": {"a": tensor}}}, tmp_path / "a.pth")
        with pytest.raises(ModelError):
            checkpoint.load(tmp_path / "a.pth")
    assert psutil.Process().memory_info().rss - before < 300e6


def test_arguments_that_are_no_plain_values_are_refused_when_read(tmp_path):
    for odd in (torch.tensor(1), {1, 2}, b"bytes", 1j):
        content = {"model": {"name": "liif", "args": {"local_ensemble": odd}, "sd": {"a": torch.zeros(1)}}}
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(ModelError):
            checkpoint.read(tmp_path / "a.pth")


def test_an_old_checkpoint_cut_anywhere_is_damaged(tmp_path):
    content = {"model": {"name": "liif", "args": {}, "sd": {"a": torch.zeros(3)}}}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pth").read_bytes()
    for length in range(1, len(whole), 7):
        (tmp_path / "a.pth").write_bytes(whole[:length])
        with pytest.raises(ModelError):
            checkpoint.read(tmp_path / "a.pth")


def test_what_its_user_has_set_for_torch_changes_no_network(tmp_path):
    expected = checkpoint.load(TINY).state_dict()
    torch.manual_seed(5)
    number = torch.rand(1)
    torch.manual_seed(5)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            loaded = checkpoint.load(TINY).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(1), number)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
