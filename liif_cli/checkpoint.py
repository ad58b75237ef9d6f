"""The only reader and writer of checkpoints.

Two formats: the official ``.pth`` (``torch.save`` of ``{"model": {"name", "args", "sd"}, ...}``), read by the unpickler
that knows nothing but tensors and plain containers, and our ``.safetensors``, which holds tensors and a header of text
and so cannot run code at all. The header carries the network's specification and the facts about it: how it was
trained, its licence, its scores.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from liif_cli.errors import ModelError
from liif_cli.files import atomic_path
from liif_cli.images.quiet import quiet
from liif_cli.models import Model, Spec, build

FORMAT = "liif-1"
MODERATE_CHANNELS, MODERATE_BLOCKS = 256, 64  # what any machine can build
RUN_MODEL = "model.safetensors"  # what a folder of a training run calls its model


class Checkpoint(NamedTuple):
    """A network on disk, or on its way there."""

    spec: Spec  # the official {"name": ..., "args": {...}}
    tensors: dict[str, Tensor]
    facts: dict[str, Any]  # anything JSON can say


def read(path: Path) -> Checkpoint:
    """Read a checkpoint of either format, told apart by content; a folder of a training run stands for the model in it.

    Raises ModelError for a file that is missing, damaged, of neither format, or that asks to run code.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / RUN_MODEL).is_file():
            raise ModelError(f"{path}: a folder without {RUN_MODEL}; name a checkpoint or the folder of a training run")
        path = path / RUN_MODEL
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    # safetensors first: the length of its header may begin with any byte, that of a pickle too.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        return _read_safetensors(path)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _read_official(path)
    raise ModelError(f"{path}: not a checkpoint; expected .safetensors written by liif or an official .pth")


def write(path: Path, checkpoint: Checkpoint, *, half: bool = False, overwrite: bool = False) -> None:
    """Write ``.safetensors``, whole or not at all; with ``half`` floating tensors are stored as float16.

    Raises OutputError where the file cannot be written.
    """
    header = {"format": FORMAT, "spec": json.dumps(checkpoint.spec), "facts": json.dumps(checkpoint.facts)}
    tensors = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in checkpoint.tensors.items()
    }
    with atomic_path(Path(path), overwrite=overwrite) as temporary:
        # Written through the file that is there: safetensors' own writer would put one in its place that only its owner
        # reads.
        temporary.write_bytes(save(tensors, metadata=header))


def load(path: Path) -> Model:
    """The network of a checkpoint with its parameters, float32, on the CPU, in evaluation mode. Raises ModelError."""
    return restore(read(path), str(path))


def restore(checkpoint: Checkpoint, source: str) -> Model:
    """Build the network and fill it; every tensor must be there, none to spare, each of its shape. Raises ModelError
    naming them."""
    odd = [name for name, tensor in checkpoint.tensors.items() if not _is_plain(tensor)]
    if odd:
        raise ModelError(f"{source}: {odd[0]} is no plain tensor of numbers; the checkpoint is damaged")
    _refuse_larger(checkpoint.spec, checkpoint.tensors, source)
    with torch.device("meta"):  # its shapes alone, which take no memory
        expected = build(checkpoint.spec).state_dict()
    wrong = [
        *(f"missing {name}" for name in expected if name not in checkpoint.tensors),
        *(f"surplus {name}" for name in checkpoint.tensors if name not in expected),
        *(
            f"{name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            for name, tensor in checkpoint.tensors.items()
            if name in expected and tensor.shape != expected[name].shape
        ),
    ]
    if wrong:
        shown = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise ModelError(f"{source}: these tensors do not fit the network it describes: {shown}")
    broken = [name for name, tensor in checkpoint.tensors.items() if not bool(torch.isfinite(tensor.float()).all())]
    if broken:
        raise ModelError(f"{source}: {broken[0]} holds values that are not numbers; the checkpoint is damaged")
    model = _built(checkpoint.spec)
    model.load_state_dict({name: tensor.float() for name, tensor in checkpoint.tensors.items()}, strict=True)
    return model.eval()


def _built(spec: Spec) -> Model:
    """A network in float32 on the CPU, whatever its user has set, whose random numbers stay as they are."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return build(spec)
    finally:
        torch.set_default_dtype(usual)


def _refuse_larger(spec: Spec, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise ModelError for a network that is much larger than what is there to fill it: it would take all memory before
    anybody saw that they do not fit."""
    args = spec.get("args") if isinstance(spec, dict) else None
    encoder = args.get("encoder_spec") if isinstance(args, dict) else None
    args = encoder.get("args") if isinstance(encoder, dict) else None
    args = args if isinstance(args, dict) else {}
    values = sum(tensor.numel() for tensor in tensors.values())
    # Each channel has a weight for each other one, each block a tensor or more.
    count = max(MODERATE_BLOCKS, len(tensors))
    side = max(MODERATE_CHANNELS, math.isqrt(values))
    bounds = {"n_feats": side, "G0": side, "n_resblocks": count, "n_resgroups": count}
    for name, most in bounds.items():
        if isinstance(args.get(name), int) and args[name] > most:
            raise ModelError(f"{source}: its {name} of {args[name]} is more than its {len(tensors)} tensors can fill")


def _is_plain(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex():
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()  # each value has its place


def _read_official(path: Path) -> Checkpoint:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    raise ModelError(
                        f"{path}: refused: a compressed archive, which torch.save does not write; unpack it"
                    )
        with quiet():  # of pickle protocols; what cannot be read is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "nsupported" in reason or "not an allowed global" in reason or "weights_only" in reason.lower():
            raise ModelError(
                f"{path}: refused: the checkpoint asks to run code or holds more than weights; get it from a source"
                " you trust, saved as plain tensors"
            ) from None
        raise ModelError(f"{path}: a damaged checkpoint; download or copy it again") from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, UnicodeError, OSError,
            AssertionError, OverflowError, struct.error, zipfile.BadZipFile) as error:  # fmt: skip
        first_line = str(error).partition("\n")[0][:120]
        raise ModelError(f"{path}: a damaged checkpoint ({first_line}); download or copy it again") from None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("sd"), dict):
        raise ModelError(f"{path}: not a LIIF checkpoint: it has no model with a name, args and sd")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in model["sd"].items()):
        raise ModelError(f"{path}: not a LIIF checkpoint: its sd holds more than named tensors")
    facts = {"epoch": content["epoch"]} if isinstance(content.get("epoch"), int) else {}
    spec = {"name": model.get("name"), "args": model.get("args", {})}
    try:
        json.dumps(spec)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a LIIF checkpoint: its args are more than words and numbers ({error})") from None
    return Checkpoint(spec, dict(model["sd"]), facts)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ModelError(f"{path}: safetensors, but not written by liif: its header names no network")
            spec, facts = json.loads(header["spec"]), json.loads(header["facts"])
            if not isinstance(facts, dict):
                raise ModelError(f"{path}: a damaged checkpoint (its facts are no table); download or copy it again")
            return Checkpoint(spec, {name: file.get_tensor(name) for name in file.keys()}, facts)  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path}: a damaged checkpoint ({error}); download or copy it again") from None
