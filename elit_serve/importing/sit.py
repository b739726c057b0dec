"""The published weights of SiT and ELIT-SiT: which backbone they are of, and each of its tensors made of theirs.

Their shapes tell nearly everything; `Split` has what they do not. The format is that of the authors' re-implementation
of ELIT, described in `nn.backbones.elit_sit`: names of modules as in DiT, those of the interface under
`input_token_editor` (Read) and `output_token_editor` (Write).

Letters: J latents per group, D width, C channels, P patch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elit_serve.catalogue import at_most
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.validation import MAX_PROBLEMS
from elit_serve.importing.torch_file import TorchFile
from elit_serve.nn import BackboneSpec, ElitSiTSpec, InvalidSpec, SiTSpec, build_empty, parse_spec
from elit_serve.nn.backbones.sit import sine_positions

READ, WRITE = "input_token_editor.adapters.0", "output_token_editor.adapters.0"
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of the widths of DiT's sizes S, B, L and XL
POSITIONS = "pos_embed"  # [1, N, D]: not taken, they are computed

MODULES = {  # ours -> theirs
    "patch_embed": "x_embedder.proj",
    "time_embed.up": "t_embedder.mlp.0",
    "time_embed.out": "t_embedder.mlp.2",
    "class_embed": "y_embedder.embedding_table",
    "latents": f"{READ}.learned_query_embed",
    "core_positions": f"{READ}.latent_pos_embed",
    "read.places": f"{READ}.pos_embed",
    "read.attention": f"{READ}.fit_layer.latents_attend_to_patches.0",
    "read.mlp": f"{READ}.fit_layer.read_ff.0",
    "read.modulation": f"{READ}.fit_layer.adaLN_modulation.1",
    "write.places": f"{WRITE}.pos_embed",
    "write.attention": f"{WRITE}.patches_attend_to_latents.0",
    "write.mlp": f"{WRITE}.write_ff.0",
    "final.linear": "final_layer.linear",
    "final.modulation": "final_layer.adaLN_modulation.1",
}
INSIDE_BLOCKS = {"attention": "attn", "mlp": "mlp", "modulation": "adaLN_modulation.1"}
INSIDE = {  # of attention and MLPs; attention's output layer is called alike in both
    "q": "q_proj", "kv": "kv_proj", "qkv": "qkv", "out": "proj", "up": "fc1", "down": "fc2",
    "q_norm.weight": "q_norm.scale", "k_norm.weight": "k_norm.scale",
}  # fmt: skip
WITHOUT_THEIRS = re.compile(r"(read|write)\.mlp\.(up|down)\.bias")  # theirs have no bias: it is zero


@dataclass(frozen=True, kw_only=True)
class Split:
    """What shapes do not tell, as a user says it; None is what the file says, or what the published ones have.

    head, tail: blocks before Read and after Write. num_heads: of attention. window: (rows, columns) of a group.
    """

    head: int | None = None
    tail: int | None = None
    num_heads: int | None = None
    window: tuple[int, int] | None = None


def spec_of_file(path: Path, file: TorchFile, split: Split) -> BackboneSpec:
    """Which backbone the weights are of. Raises `CheckpointError`, or `InvalidInput` for what the user has to say."""
    weights = file.weights
    dim, channels, patch, _ = _shape(path, weights, "x_embedder.proj.weight", 4)
    _, num_tokens, _ = _shape(path, weights, POSITIONS, 3)
    rows, _ = _shape(path, weights, "y_embedder.embedding_table.weight", 2)
    depth = len({found[1] for name in weights if (found := re.match(r"blocks\.(\d+)\.", name))})
    side = math.isqrt(num_tokens) * patch
    fields: dict[str, Any] = {
        "channels": channels, "height": side, "width": side, "patch": patch,
        "dim": dim, "depth": depth, "num_heads": split.num_heads or _heads(dim), "num_classes": rows - 1,
    }  # fmt: skip
    is_elastic = any(name.startswith(f"{READ}.") for name in weights)
    if is_elastic:
        latents, _ = _shape(path, weights, MODULES["latents"], 2)
        fields["interface"] = _interface(latents, depth, file.args, split)
    try:
        return parse_spec((ElitSiTSpec if is_elastic else SiTSpec).kind, fields)
    except InvalidSpec as error:
        raise CheckpointError(path, [str(error)]) from None


def _shape(path: Path, weights: Mapping[str, Tensor], name: str, num_sides: int) -> tuple[int, ...]:
    if name not in weights or weights[name].ndim != num_sides:
        what = "lacks" if name not in weights else "has another shape of"
        raise CheckpointError(path, [f"no weights of a SiT or an ELIT-SiT: it {what} {name}"])
    return tuple(weights[name].shape)


def _heads(dim: int) -> int:
    if dim not in HEADS:
        raise InvalidInput("--heads", None, f"how many attention heads a model of width {dim} has is not in its file")
    return HEADS[dim]


def _interface(latents: int, depth: int, args: Mapping[str, Any], split: Split) -> dict[str, Any]:
    """How the interface splits a model. The published code gives the tail half as many blocks as the head."""
    head = _told(args, "encoder_depth") if split.head is None else split.head
    if head is None:
        raise InvalidInput("--head", None, "how many blocks stand before Read is not in this file; published XL have 8")
    tail = head // 2 if split.tail is None else split.tail
    if not 0 <= head + tail < depth:
        raise InvalidInput("--head, --tail", (head, tail), f"together fewer than the {depth} blocks of the model")
    side = _told(args, "elit_group_size") or math.isqrt(latents)
    window = split.window or (side, side)
    if math.prod(window) != latents:
        raise InvalidInput("--window", window, f"rows and columns whose product is {latents}, the latents per group")
    return {"window": list(window), "head": head, "core": depth - head - tail, "tail": tail}


def _told(args: Mapping[str, Any], name: str) -> int | None:
    value = args.get(name)
    return value if type(value) is int else None


def weights_of_file(path: Path, file: TorchFile, spec: BackboneSpec) -> dict[str, Tensor]:
    """The tensors of this backbone, most of them views of the file's.

    Raises one `CheckpointError` that lists what is missing, has another shape or does not belong there.
    """
    assert isinstance(spec, SiTSpec | ElitSiTSpec), spec.kind
    expected = {name: tuple(tensor.shape) for name, tensor in build_empty(spec).state_dict().items()}
    theirs = {name: _theirs(name, spec) for name in expected if not WITHOUT_THEIRS.fullmatch(name)}
    problems = [*_problems(file.weights, {theirs[name]: _their_shape(name, expected[name], spec) for name in theirs})]
    if not problems and not _has_sines(file.weights[POSITIONS], spec):
        problems.append(f"{POSITIONS} is not the sine-cosine table of DiT")
    if problems:
        raise CheckpointError(path, at_most(problems, MAX_PROBLEMS))
    return {
        name: _converted(name, file.weights[theirs[name]], spec) if name in theirs else torch.zeros(shape)
        for name, shape in expected.items()
    }


def _theirs(name: str, spec: SiTSpec | ElitSiTSpec) -> str:
    """What they call our tensor."""
    if found := re.fullmatch(r"(blocks|head|core|tail)\.(\d+)\.(attention|mlp|modulation)\.(.+)", name):
        part, index, module, rest = found.groups()
        return f"blocks.{_first_block(part, spec) + int(index)}.{INSIDE_BLOCKS[module]}.{_inside(rest)}"
    ours = max((module for module in MODULES if name == module or name.startswith(f"{module}.")), key=len)
    rest = name.removeprefix(ours).removeprefix(".")
    return f"{MODULES[ours]}.{_inside(rest)}" if rest else MODULES[ours]


def _first_block(part: str, spec: SiTSpec | ElitSiTSpec) -> int:
    if isinstance(spec, SiTSpec):
        return 0
    split = spec.interface
    return {"head": 0, "core": split.head, "tail": split.head + split.core}[part]


def _inside(rest: str) -> str:
    """Of attention or an MLP; all else is called `weight` and `bias` by both."""
    layer, _, tensor = rest.partition(".")
    return INSIDE.get(rest) or (f"{INSIDE[layer]}.{tensor}" if layer in INSIDE else rest)


def _problems(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, shape in expected.items():
        if name not in weights:
            yield f"tensor {name} is missing"
        elif tuple(weights[name].shape) != shape:
            yield f"tensor {name} has shape {tuple(weights[name].shape)}, expected {shape}"
        elif not _holds_numbers(weights[name]):
            yield f"tensor {name} is {weights[name].dtype} of {weights[name].layout}, not plain floating point"
    yield from (f"tensor {name} does not belong there" for name in weights if name not in {*expected, POSITIONS})


def _holds_numbers(tensor: Tensor) -> bool:
    """A sparse tensor, or one without memory, may be in such a file as well."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def _their_shape(name: str, shape: tuple[int, ...], spec: SiTSpec | ElitSiTSpec) -> tuple[int, ...]:
    if name == "patch_embed.weight":  # a convolution
        return spec.dim, spec.channels, spec.patch, spec.patch
    if name.startswith("read.modulation."):  # a seventh part, which nothing reads
        return 7 * spec.dim, *shape[1:]
    return shape


def _converted(name: str, tensor: Tensor, spec: SiTSpec | ElitSiTSpec) -> Tensor:
    """Our tensor of theirs."""
    if name == "patch_embed.weight":
        return tensor.flatten(1)
    if name.startswith("read.modulation."):
        return tensor[: 6 * spec.dim]
    if name.startswith("final.linear."):  # theirs has channels last in a patch, and predicts noise - data
        patches = tensor.view(spec.patch, spec.patch, spec.channels, *tensor.shape[1:])
        return -patches.movedim(2, 0).flatten(0, 2)
    return tensor


def _has_sines(positions: Tensor, spec: SiTSpec | ElitSiTSpec) -> bool:
    """Whether their positions are what the backbone computes, [1, N, D] row by row over the grid."""
    rows, columns = spec.token_grid(spec.height, spec.width)
    number = torch.arange(rows * columns)
    sines = sine_positions(number // columns, number % columns, spec.dim)
    if not _holds_numbers(positions) or positions.shape != (1, *sines.shape):
        return False
    return torch.allclose(positions[0].float(), sines, atol=1e-3)
