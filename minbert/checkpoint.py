"""Weights on disk: Hugging Face's names outside, ours inside, and not a key unaccounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minbert.errors import InputError
from minbert.files import write_tensors

# Our module -> Hugging Face's; {} is the layer's number. Each has a weight, and all but the tables a bias.
# Where there are several of theirs, ours holds their rows one below the other: one product for all.
MODULES = {
    "embeddings.word": ["embeddings.word_embeddings"],
    "embeddings.position": ["embeddings.position_embeddings"],
    "embeddings.token_type": ["embeddings.token_type_embeddings"],
    "embeddings.norm": ["embeddings.LayerNorm"],
    "layers.{}.attention.query": ["encoder.layer.{}.attention.self.query"],
    "layers.{}.attention.key_value": [
        "encoder.layer.{}.attention.self.key",
        "encoder.layer.{}.attention.self.value",
    ],
    "layers.{}.attention_output": ["encoder.layer.{}.attention.output.dense"],
    "layers.{}.attention_norm": ["encoder.layer.{}.attention.output.LayerNorm"],
    "layers.{}.intermediate": ["encoder.layer.{}.intermediate.dense"],
    "layers.{}.output": ["encoder.layer.{}.output.dense"],
    "layers.{}.output_norm": ["encoder.layer.{}.output.LayerNorm"],
    "pooler": ["pooler.dense"],
}

# A constant buffer of old versions, and the pre-training heads that an encoder does not have.
IGNORED = re.compile(r"embeddings\.position_ids|cls\.(predictions|seq_relationship)\..+")


def hugging_face_names(name: str) -> list[str]:
    """layers.3.output.bias -> encoder.layer.3.output.dense.bias"""
    module, _, parameter = name.rpartition(".")
    number = "".join(re.findall(r"\d+", module))
    template = module.replace(f".{number}.", ".{}.") if number else module
    return [f"{theirs.format(number)}.{parameter}" for theirs in MODULES[template]]


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict, or the gradients by the same names, under Hugging Face's names; views, not copies."""
    return {
        theirs: rows
        for name, tensor in state.items()
        for names in [hugging_face_names(name)]
        for theirs, rows in zip(names, tensor.chunk(len(names)), strict=True)
    }


def canonical_name(name: str) -> str:
    """A checkpoint's key without the prefix `bert.`, and with LayerNorm's modern parameter names."""
    name = name.removeprefix("bert.")
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def load(directory: Path, state: Mapping[str, Tensor], allow_pickle: bool = False) -> None:
    """Fill a model's own state dict, in float32, from the checkpoint in this folder.

    InputError lists every key that is missing, unexpected, given twice, misshapen or not of floats; then
    nothing is filled.
    """
    path, tensors = _read(directory, allow_pickle)
    found: dict[str, Tensor] = {}
    problems = []
    for key, tensor in tensors.items():
        name = canonical_name(key)
        if name in found:
            problems.append(f"{key} is given twice")
        if not IGNORED.fullmatch(name):
            found[name] = tensor
    places = to_hugging_face(state)
    for name, place in places.items():
        given = found.get(name)
        if given is None:
            problems.append(f"{name} is missing")
        elif given.shape != place.shape:
            problems.append(f"{name} has shape {tuple(given.shape)}, config.json wants {tuple(place.shape)}")
        elif not given.is_floating_point():
            problems.append(f"{name} holds {given.dtype}, not floats")
    problems += [f"{name} is unexpected" for name in found.keys() - places.keys()]
    if problems:
        raise InputError(f"{path}: not a BERT encoder that fits its config.json: " + "; ".join(problems))
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(found[name])


def save(directory: Path, state: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors` under Hugging Face's names."""
    write_tensors(directory / "model.safetensors", to_hugging_face(state))


def _read(directory: Path, allow_pickle: bool) -> tuple[Path, dict[str, Tensor]]:
    path = directory / "model.safetensors"
    if path.is_file():
        try:
            return path, load_file(path)
        except (OSError, SafetensorError) as error:
            remedy = f"delete {directory}, then fetch or save it again"
            raise InputError(f"{path}: not a whole safetensors file ({error}); {remedy}") from None
    path = directory / "pytorch_model.bin"
    if not path.is_file():
        raise InputError(f"{directory}: holds neither model.safetensors nor pytorch_model.bin")
    if not allow_pickle:
        raise InputError(
            f"{path}: a pickle, read only with allow_pickle=True (--allow-pickle); safetensors is better"
        )
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or hostile pickle can fail in any way
        raise InputError(f"{path}: not a plain file of tensors ({type(error).__name__})") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"{path}: holds something else than named tensors")
    return path, tensors
