"""A model directory on disk: write, validate, load. Nothing is ever unpickled.

config.json                      what the model is, and the SHA-256 of every weight file
model.safetensors                the weights; when large, model-00001-of-0000N.safetensors and an index
quality.json                     optional: what its plans are worth, see `files.quality`
skips.json                       optional: how much its cores change between steps, see `files.skips`
latency/, README.md              optional, read elsewhere
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elit_serve.catalogue import Offer, at_most, measured_quality, measured_skips, read_config
from elit_serve.engine.autoencoders import kind_of
from elit_serve.engine.conditions import condition_problems
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import ModelConfig, SamplingConfig, WeightDtype, WeightsConfig
from elit_serve.files.opening import open_file, regular
from elit_serve.files.validation import FieldProblem, problems_in
from elit_serve.nn import Backbone, BackboneSpec, InvalidSpec, build_empty, parse_spec

MAX_SHARD_BYTES = 4 << 30
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file
UNWRITTEN_DIGEST = "0" * 64  # of a file that is to be written; the real one takes its place then
TORCH_DTYPES: dict[WeightDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def weight_dtype(name: str) -> WeightDtype:
    """`name` as one of the dtypes that weights may have."""
    for known in TORCH_DTYPES:
        if name == known:
            return known
    raise InvalidInput("dtype", name, f"one of {', '.join(TORCH_DTYPES)}")


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Offer):
    """A validated model directory: what it offers, and its weights, on the CPU."""

    model: Backbone

    @property
    def model_hash(self) -> str:
        return self.config.model_hash


def read_spec(path: Path) -> tuple[ModelConfig, BackboneSpec]:
    """`config.json` of a model directory, and the backbone that it describes.

    Raises one `CheckpointError` that lists all that is wrong with both.
    """
    config = read_config(path, spec_problems)
    spec = spec_of(config)
    problems = [f"config.json: {problem}" for problem in _disagreements(config, spec)]
    if problems:
        raise CheckpointError(path, problems)
    return config, spec


def spec_of(config: ModelConfig) -> BackboneSpec:
    """The backbone of a configuration. Raises `InvalidSpec`."""
    return parse_spec(config.backbone.kind, config.backbone.fields)


def spec_problems(kind: str, fields: Mapping[str, Any]) -> Sequence[FieldProblem]:
    """What is wrong with the fields of a backbone, a `files.BackboneCheck`."""
    try:
        parse_spec(kind, fields)
    except InvalidSpec as error:
        return error.problems
    return ()


def _disagreements(config: ModelConfig, spec: BackboneSpec) -> Iterator[str]:
    """Where what a reader without torch is told is not what the backbone is, and parts that nobody knows."""
    try:
        kind_of(config.autoencoder)
    except InvalidInput as error:
        yield str(error)
    yield from condition_problems(config)
    for name, value in spec.config_fields().items():
        told = getattr(config, name)
        if isinstance(value, int) and told != value:
            yield f"{name} is {told}, and the backbone has {value}"
    for name, size in config.shapes.items():
        channels = spec.sample_shape[0]
        if len(size) != len(spec.sample_shape) or size[0] != channels:
            yield f"shapes.{name}: the backbone's samples have {len(spec.sample_shape)} dimensions, {channels} channels"
            continue
        try:
            spec.check_size(*size[1:])
        except InvalidInput as error:
            yield f"shapes.{name}: {error}"


def load_checkpoint(path: Path, *, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Validates everything, then loads the weights on the CPU in `dtype`.

    Raises one `CheckpointError` that lists all that is wrong.
    """
    config, spec = read_spec(path)
    model = build_empty(spec)
    quality, quality_problems = measured_quality(path, config)
    calibration, skip_problems = measured_skips(path, config)
    problems = [*_weight_problems(path, config.weights, model), *quality_problems, *skip_problems]
    if problems:
        raise CheckpointError(path, problems)
    model.load_state_dict(_read_tensors(path, config.weights, dtype), assign=True)
    model = model.eval().requires_grad_(False)
    return Checkpoint(path=path, config=config, model=model, quality=quality, calibration=calibration)


def write_sampling(path: Path, sampling: SamplingConfig) -> ModelConfig:
    """Replaces the recommended sampling in `config.json`; the model's hash, which is of its weights, stays, and so do
    time shifts that depend on the shape."""
    known = read_config(path)
    if shifts := known.sampling.shape_shifts:
        sampling = sampling.model_copy(update={"time_shift": known.sampling.time_shift, "shape_shifts": shifts})
    config = known.model_copy(update={"sampling": sampling})
    written = ModelConfig.model_validate(config.model_dump())  # the parts must still agree
    staging = path / ".config.json.new"
    try:
        staging.write_text(written.model_dump_json(indent=2) + "\n", encoding="utf-8")
        staging.replace(path / "config.json")
    except OSError as error:
        raise CheckpointError(path, [f"config.json cannot be written: {error.strerror or error}"]) from None
    return written


def _weight_problems(path: Path, weights: WeightsConfig, model: Backbone) -> list[str]:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    dtype = TORCH_DTYPES[weights.dtype]
    max_bytes = MAX_HEADER_BYTES + sum(tensor.numel() for tensor in model.state_dict().values()) * dtype.itemsize
    problems: list[str] = []
    seen: set[str] = set()
    for name, digest in weights.files.items():
        file = path / name
        try:
            altered = _sha256(file, max_bytes) != digest
        except FileNotFoundError:
            problems.append(f"{name} is missing")
            continue
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror}")
            continue
        if altered:
            problems.append(f"{name} is truncated or altered: its SHA-256 is not the one in config.json")
        problems += _header_problems(file, expected, dtype, seen)
    if not problems:
        problems += [f"tensor {name} is missing" for name in expected if name not in seen]
    return at_most(problems, 12)


def _dtype_of(path: Path, file: str) -> torch.dtype:
    """That of the first tensor in a file of weights of a directory, one of those that weights may have. Raises
    `CheckpointError`."""
    try:
        with safe_open(regular(path / file), framework="pt") as first:
            name = next(iter(first.keys()))
            found = first.get_slice(name).get_dtype()
    except (OSError, SafetensorError, StopIteration) as error:
        raise CheckpointError(path, [f"{file} is not a safetensors file with weights: {error}"]) from None
    known = {_SAFETENSORS_NAMES[dtype]: dtype for dtype in TORCH_DTYPES.values()}
    if found not in known:
        raise CheckpointError(path, [f"{file}: tensor {name} is {found}; one of {', '.join(known)}"])
    return known[found]


def weights_found(path: Path, files: Sequence[str], spec: BackboneSpec) -> WeightsConfig:
    """What a configuration says of weights that lie in these files of a directory: they are those of a backbone, and
    have one dtype. Raises one `CheckpointError` that lists all that is wrong."""
    wanted = check_headers(path, files, spec)
    dtype = next(name for name, known in TORCH_DTYPES.items() if known == wanted)
    return WeightsConfig(dtype=dtype, files={file: _sha256(path / file) for file in files})


def check_headers(path: Path, files: Sequence[str], spec: BackboneSpec) -> torch.dtype:
    """The one dtype of weights in these files of a directory, which are those of a backbone as far as can be told
    without reading them. Raises one `CheckpointError` that lists all that is wrong."""
    try:
        WeightsConfig(dtype="float32", files=dict.fromkeys(files, UNWRITTEN_DIGEST))
    except ValidationError as error:
        raise CheckpointError(path, problems_in(error)) from None
    wanted, model, seen = _dtype_of(path, files[0]), build_empty(spec), set[str]()
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [problem for file in files for problem in _header_problems(path / file, expected, wanted, seen)] or [
        f"tensor {name} is missing" for name in expected if name not in seen
    ]
    if problems:
        raise CheckpointError(path, at_most(problems, 12))
    return wanted


def _header_problems(
    file: Path, expected: Mapping[str, tuple[int, ...]], dtype: torch.dtype, seen: set[str]
) -> list[str]:
    problems = []
    try:
        with safe_open(regular(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                part = tensors.get_slice(name)
                shape, found = tuple(part.get_shape()), part.get_dtype()
                if name not in expected:
                    problems.append(f"tensor {name} does not belong to this backbone")
                elif shape != expected[name]:
                    problems.append(f"tensor {name} has shape {shape}, expected {expected[name]}")
                elif found != _SAFETENSORS_NAMES[dtype]:
                    problems.append(f"tensor {name} is {found}, expected {_SAFETENSORS_NAMES[dtype]}")
                if name in seen:
                    problems.append(f"tensor {name} is in two files")
                seen.add(name)
    except (SafetensorError, OSError) as error:
        problems.append(f"{file.name} is not a safetensors file: {error}")
    return problems


_SAFETENSORS_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def _read_tensors(path: Path, weights: WeightsConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in weights.files:
        with safe_open(regular(path / name), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                tensors[key] = file.get_tensor(key).to(dtype)
    return tensors


def write_checkpoint(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    replace: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ModelConfig:
    """Writes a model directory in one move: either all of it is there, or nothing has changed.

    `config.weights.dtype` is the dtype on disk; the file digests are filled in. With `replace` an existing directory
    keeps its other files (README.md, quality.json, latency/). Returns the config as written.
    """
    if path.exists() and not replace:
        raise InvalidInput("path", str(path), "it exists already")
    _check_weights(path, spec_of(config), weights)
    dtype = TORCH_DTYPES[config.weights.dtype]
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        if path.exists():
            replaced = shutil.ignore_patterns("*.safetensors", "*.index.json", "config.json")

            def at_the_top(folder: str, names: list[str]) -> set[str]:  # an autoencoder's folder has such files too
                return replaced(folder, names) if Path(folder) == path else set()

            shutil.copytree(path, staging, ignore=at_the_top, dirs_exist_ok=True)
        files = _write_shards(staging, weights, dtype, max_shard_bytes)
        written = config.model_copy(update={"weights": config.weights.model_copy(update={"files": files})})
        (staging / "config.json").write_text(written.model_dump_json(indent=2) + "\n", encoding="utf-8")
        staging.chmod(0o755)
        _swap_in(staging, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, [f"it cannot be written: {error}"]) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return written


def _check_weights(path: Path, spec: BackboneSpec, weights: Mapping[str, Tensor]) -> None:
    expected = {name: tensor.shape for name, tensor in build_empty(spec).state_dict().items()}
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        raise CheckpointError(path, ["the weights are not those of the backbone in the config"])


def _write_shards(
    folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype, max_shard_bytes: int
) -> dict[str, str]:
    """Weights are converted a shard at a time: those of a mapped file need not fit into memory."""
    sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in weights.items()}
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, {key: weights[key] for key in shard}, dtype)
    return {name: _sha256(folder / name) for name in names}


def _write_shard(file: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """What is converted here is let go before the next shard begins."""
    converted = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items()}
    save_file(converted, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes it private; an installed model is read by other users


def _swap_in(staging: Path, path: Path) -> None:
    """A kill between the two renames leaves the old model beside its place, under a hidden name ending in -replaced."""
    if not path.exists():
        staging.rename(path)
        return
    old = staging.with_name(f"{staging.name}-replaced")
    path.rename(old)
    try:
        staging.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sha256(file: Path, max_bytes: int | None = None) -> str:
    """Of a file; a larger one is an `OSError`, so that nobody waits for its end."""
    with open_file(file, max_bytes) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
