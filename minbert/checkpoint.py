"""Weights on disk: Hugging Face's names outside, ours inside, and not a key unaccounted for."""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import Parameter

from minbert.errors import InputError, short_line, shown
from minbert.files import write_tensors

# Our module -> Hugging Face's; {} is the layer's number. Each has a weight, and all but the tables a bias.
MODULES = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{}.attention.query": "encoder.layer.{}.attention.self.query",
    "layers.{}.attention.key": "encoder.layer.{}.attention.self.key",
    "layers.{}.attention.value": "encoder.layer.{}.attention.self.value",
    "layers.{}.attention_output": "encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.intermediate": "encoder.layer.{}.intermediate.dense",
    "layers.{}.output": "encoder.layer.{}.output.dense",
    "layers.{}.output_norm": "encoder.layer.{}.output.LayerNorm",
    "pooler": "pooler.dense",
    "head": "cls.predictions",  # that of mlm.py, which is the only one with a bias of its own
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
}
OPTIONAL = ("pooler.", "cls.predictions.")  # parts that a checkpoint may lack, but then as a whole

REPORTED = 20  # problems spelled out in one report
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# A constant buffer of old versions, and the pre-training heads, unless they are asked for.
IGNORED = re.compile(
    r"embeddings\.position_ids|cls\.seq_relationship\.(weight|bias)|cls\.predictions\."
    r"(bias|decoder\.(weight|bias)|transform\.(dense|LayerNorm)\.(weight|bias|gamma|beta))"
)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape and dtype, and how to read it."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str  # one of FLOATS, or the name of another
    read: Callable[[], Tensor]


def hugging_face_name(name: str) -> str:
    """Return Hugging Face's name of one of our parameters.

    >>> hugging_face_name("layers.3.output.bias")
    'encoder.layer.3.output.dense.bias'
    """
    module, _, parameter = name.rpartition(".")
    number = "".join(re.findall(r"\d+", module))
    template = module.replace(f".{number}.", ".{}.") if number else module
    return f"{MODULES[template].format(number)}.{parameter}"


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict, or gradients by the same names, under Hugging Face's names."""
    return {hugging_face_name(name): tensor for name, tensor in state.items()}


def canonical_name(name: str) -> str:
    """Return a checkpoint's key without the prefix `bert.`, and with LayerNorm's modern parameter names.

    >>> canonical_name("bert.embeddings.LayerNorm.gamma")
    'embeddings.LayerNorm.weight'
    """
    name = name.removeprefix("bert.")
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def find(
    directory: Path, state: Mapping[str, Tensor], allow_pickle: bool = False, within: str = ""
) -> dict[str, Stored]:
    """What this folder's checkpoint has for a model's own state dict, of which only names and shapes count;
    with `within`, only the part of the checkpoint whose names begin so.

    InputError lists the keys that are missing, unexpected, given twice, misshapen or not of floats, as the
    file's own table of contents says, before any tensor is read. Parts that are `OPTIONAL` may be missing.
    """
    path, stored = _open(directory, allow_pickle)
    found: dict[str, Stored] = {}
    problems = []
    for key, tensor in stored.items():
        name = canonical_name(key)
        if name in found:
            problems.append(f"{shown(key)[1:-1]} is given twice")
        if name.startswith(within):
            found[name] = tensor
    places = to_hugging_face(state)
    lacked = tuple(part for part in OPTIONAL if not any(name.startswith(part) for name in found))
    for name, place in places.items():
        given = found.get(name)
        if given is None:
            problems += [] if name.startswith(lacked) else [f"{name} is missing"]
        elif given.shape != place.shape:
            problems.append(f"{name} has shape {shown(given.shape)}, config.json wants {tuple(place.shape)}")
        elif given.dtype not in FLOATS.values():
            problems.append(f"{name} holds {given.dtype}, not floats")
    unexpected = [name for name in found if name not in places and not IGNORED.fullmatch(name)]
    problems += [f"{shown(name)[1:-1]} is unexpected" for name in unexpected]
    if problems:
        more = [f"... and {len(problems) - REPORTED} more"] if len(problems) > REPORTED else []
        listed = "; ".join(problems[:REPORTED] + more)
        raise InputError(f"{path}: not a BERT encoder that fits its config.json: {listed}")
    return found


@torch.no_grad()
def fill(state: Mapping[str, Tensor], stored: Mapping[str, Stored], directory: Path) -> None:
    """Read what `find` has found in a folder into a model's own state dict, in its precision. Raises
    InputError if a weight is not finite."""
    for name, place in to_hugging_face(state).items():
        place.copy_(stored[name].read())
        if not place.isfinite().all():
            problem = f"the weights {name} are not all finite"
            raise InputError(f"{directory}: {problem}; fetch or train the model again")


def save(directory: Path, state: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors` under Hugging Face's names."""
    write_tensors(directory / "model.safetensors", to_hugging_face(state))


def contents(path: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file, described by its header; none is read yet. Raises OSError or
    SafetensorError if the file is not whole."""
    if not path.is_file():  # a pipe would hold us up
        raise OSError(errno.EINVAL, "not a regular file" if path.exists() else "no such file")
    try:
        file = safe_open(path, framework="pt")
    except MemoryError as error:  # of a file larger than the machine's memory, as a hole on the disk may be
        raise OSError(errno.EFBIG, short_line(error)) from None
    stored, keys = {}, file.keys()
    for key in keys:
        part = file.get_slice(key)
        shape, dtype = tuple(part.get_shape()), part.get_dtype()
        stored[key] = Stored(shape, FLOATS.get(dtype, dtype), partial(file.get_tensor, key))
    return stored


def _open(directory: Path, allow_pickle: bool) -> tuple[Path, dict[str, Stored]]:
    path = directory / "model.safetensors"
    if path.is_file():
        try:
            return path, contents(path)
        except (OSError, SafetensorError) as error:
            damaged = path.resolve() if path.is_symlink() else directory  # a link, in huggingface_hub's cache
            remedy = f"delete {damaged}, then fetch or save it again"
            raise InputError(
                f"{path}: not a whole safetensors file ({short_line(error)}); {remedy}"
            ) from None
    path = directory / "pytorch_model.bin"
    if not path.is_file():
        raise InputError(f"{directory}: holds neither model.safetensors nor pytorch_model.bin")
    if not allow_pickle:
        raise InputError(f"{path}: a pickle, read only with allow_pickle=True; safetensors is better")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a hostile one provokes
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or hostile pickle can fail in any way
        raise InputError(f"{path}: not a plain file of tensors ({type(error).__name__})") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and type(tensor) in (Tensor, Parameter) and tensor.layout == torch.strided
        for name, tensor in tensors.items()
    ):
        raise InputError(f"{path}: holds something else than named tensors")
    return path, {
        name: Stored(tuple(tensor.shape), tensor.dtype, tensor.detach) for name, tensor in tensors.items()
    }
