"""A folder of diffusers as a model directory: our files are written into it, and its own are left as they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from elit_serve.engine.autoencoders.folder import check_autoencoder, read_folder
from elit_serve.engine.checkpoint import check_headers, weights_found
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import (
    AutoencoderConfig,
    ModelConfig,
    SamplingConfig,
    TextConfig,
    TextEncoderConfig,
    WeightsConfig,
    check_name,
)
from elit_serve.files.opening import MAX_JSON_BYTES, read_file, regular
from elit_serve.files.validation import problems_in
from elit_serve.importing.pipelines import PIPELINES, PipelineFacts, Scheduler
from elit_serve.importing.sit import Split
from elit_serve.nn import InvalidSpec, build_empty
from elit_serve.nn.backbones.dense.dense import DenseSpec
from elit_serve.nn.backbones.dense.elit import ElitDense, ElitDenseSpec
from elit_serve.plans.bounds import MAX_TEXT_TOKENS
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.size import Size, nearest_multiples

EXAMPLES = (
    "a red tulip in a garden after the rain, photograph",
    "a small wooden house by the sea at dusk, oil painting",
    "a cat that reads a newspaper, drawing in ink",
)
ELIT = "elit.safetensors"  # what an elastic model has beside the dense weights
SEED = 0  # of what it starts as
WEAK_SHARE = 8  # the weak pass of guidance keeps one latent in 8 (paper, section 4.4)
RESOLUTION = 1024  # pixels a side where neither a user nor the folder says any size

M = TypeVar("M", bound=BaseModel)


class _Index(BaseModel):
    """`model_index.json`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    pipeline: str = Field(alias="_class_name")
    version: str | None = Field(default=None, alias="_diffusers_version")
    default_sample_size: int | None = Field(default=None, ge=1, le=65536)
    is_distilled: bool = False


class _Tokenizer(BaseModel):
    """`tokenizer/tokenizer_config.json`. An unlimited length is written as a very large number."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_max_length: int | float | None = None


class _Shards(BaseModel):
    """The index of weights that lie in several files."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    weight_map: dict[str, str] = Field(min_length=1)


def import_folder(
    folder: Path,
    *,
    sizes: Sequence[str] = (),
    max_tokens: int | None = None,
    steps: int | None = None,
    scale: float | None = None,
    split: Split | None = None,
    source: str | None = None,
    license_text: str | None = None,
    replace_ours: bool = False,
) -> ModelConfig:
    """Writes `config.json` into a folder with a pipeline of diffusers, so that it is a model directory.

    sizes: of pictures, as "1024x1024", the default first; without any the one that the folder says. max_tokens: of a
    prompt; None is what its tokenizer says. steps, scale: of sampling and guidance where a request does not say; None
    is what the pipeline does by itself, and 1 is no guidance. split: where Read and Write stand in an elastic model,
    whose own tensors are those of `elit.safetensors`: it is written as training begins with it where it is not there
    yet. None leaves the model as it is, with one level. Weights are read once, for their digests; none is changed,
    copied or unpickled. Raises `CheckpointError` for the folder and `InvalidInput` for the rest.
    """
    check_name(folder)
    target = folder / "config.json"
    if target.exists() and not replace_ours:
        raise InvalidInput("folder", str(folder), "it has a config.json already; --replace writes another")
    index = _read(folder, "model_index.json", _Index)
    if index.pipeline not in PIPELINES:
        problem = f"model_index.json: _class_name: {index.pipeline!r} is not allowed; one of {', '.join(PIPELINES)}"
        raise CheckpointError(folder, [problem])
    facts = PIPELINES[index.pipeline]
    if index.is_distilled:
        facts = _distilled(facts, scale)
    specs, factor = _specs(folder, facts, index, sizes, max_tokens, split)
    config = _config(folder, facts, specs, factor, steps, scale)
    provenance = {
        "source": source,
        "license": license_text,
        "imported_from": {"pipeline": index.pipeline, "diffusers": index.version},
    }
    written = config.model_copy(update={"provenance": {key: value for key, value in provenance.items() if value}})
    _write(target, written)
    return written


def _distilled(facts: PipelineFacts, scale: float | None) -> PipelineFacts:
    """Of a folder that says that it is distilled: its pipeline takes few steps, and guides none."""
    if scale is not None and scale > 1:
        raise InvalidInput("--guidance-scale", scale, "1 or left out: model_index.json says that it is distilled")
    return replace(facts, steps=facts.distilled_steps or facts.steps, guidance=Guidance())


def _config(
    folder: Path,
    facts: PipelineFacts,
    specs: Sequence[DenseSpec],
    factor: int,
    steps: int | None,
    scale: float | None,
) -> ModelConfig:
    """All but where it comes from. specs: at each size. factor: of the autoencoder."""
    spec, *others = specs
    scheduler = _read(folder, "scheduler/scheduler_config.json", Scheduler)
    guidance = _guidance(facts.guidance, scale, spec)
    try:
        shift = facts.shift(scheduler, spec.num_tokens)
        shifts = {other.shape.name: facts.shift(scheduler, other.num_tokens) for other in others}
    except (ValueError, InvalidInput) as error:
        raise CheckpointError(folder, [f"scheduler/scheduler_config.json: {error}"]) from None
    try:
        return ModelConfig(
            name=folder.name,
            **{**spec.config_fields(), "shapes": {each.shape.name: each.sample_shape for each in specs}},
            levels=spec.levels,
            conditions=TextConfig(
                encoder=TextEncoderConfig(kind="diffusers"),
                dim=spec.text_dim,
                max_tokens=spec.max_tokens,
                negative=True,
                examples=EXAMPLES,
            ),
            autoencoder=AutoencoderConfig(kind="diffusers", factor=factor, folder="vae"),
            sampling=SamplingConfig(
                steps=steps or facts.steps,
                time_shift=shift,
                shape_shifts={name: own for name, own in shifts.items() if own != shift},
                guidance=guidance,
            ),
            weights=_weights(folder, spec),
        )
    except ValidationError as error:
        raise CheckpointError(folder, problems_in(error)) from None


def _guidance(usual: Guidance, scale: float | None, spec: DenseSpec) -> Guidance:
    """Of an elastic model the weak pass keeps few latents (paper, section 4.4)."""
    if scale is not None and scale <= 1:
        return Guidance()
    guidance = usual if scale is None else replace(usual, scale=scale)
    if len(spec.levels) == 1:
        return guidance
    return replace(guidance, method="ccfg", weak_level=max(1, spec.latents_per_group // WEAK_SHARE))


def _weights(folder: Path, spec: DenseSpec) -> WeightsConfig:
    """Those of the transformer and, of an elastic model, those that it has beside."""
    files = [*_weight_files(folder)]
    if isinstance(spec, ElitDenseSpec):
        if (folder / ELIT).exists():
            _check_window(folder, spec)
        else:
            _write_interface(folder, spec, check_headers(folder, files, spec.plain()))
        files.append(ELIT)
    return weights_found(folder, files, spec)


def _check_window(folder: Path, spec: ElitDenseSpec) -> None:
    """Of a file that is there already, where it says for which it is: some windows have tensors of the same shapes."""
    try:
        with safe_open(regular(folder / ELIT), framework="pt") as tensors:
            told = (tensors.metadata() or {}).get("window")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(folder, [f"{ELIT} is not a safetensors file: {error}"]) from None
    if told not in (None, _window_text(spec)):
        allowed = f"{told}, which {ELIT} is for; where that is moved away, another one is made"
        raise InvalidInput("--window", _window_text(spec), allowed)


def _window_text(spec: ElitDenseSpec) -> str:
    return ",".join(map(str, spec.interface.window))


def _write_interface(folder: Path, spec: ElitDenseSpec, dtype: torch.dtype) -> None:
    """As training begins with it: at the full level it changes nothing. All of the file or none of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = build_empty(spec)
        assert isinstance(model, ElitDense), spec.kind
        model.make_interface()
    made = {name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items() if not tensor.is_meta}
    staging = folder / f".{ELIT}.new"
    try:
        save_file(made, staging, metadata={"format": "pt", "window": _window_text(spec)})
        staging.replace(folder / ELIT)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(folder, [f"{ELIT} cannot be written: {error}"]) from None
    finally:
        staging.unlink(missing_ok=True)


def _specs(
    folder: Path,
    facts: PipelineFacts,
    index: _Index,
    sizes: Sequence[str],
    max_tokens: int | None,
    split: Split | None,
) -> tuple[list[DenseSpec], int]:
    """The backbone at each size, and the factor of the autoencoder."""
    coder = read_folder(folder / "vae", "vae")
    side = index.default_sample_size or RESOLUTION
    wanted = [Size.read(size, field="--sizes") for size in sizes] or [Size(side, side)]
    tokens = _max_tokens(folder, facts.max_tokens if max_tokens is None else max_tokens)
    specs = _specs_of(folder, facts.transformer, wanted, coder.factor, {"max_tokens": tokens})
    if split is not None:
        if facts.elastic is None:
            raise InvalidInput("--window", split.window, f"left out: there is no ELIT inside a {index.pipeline} yet")
        ours = {"max_tokens": tokens, "interface": _interface(split, specs[0].depth)}
        specs = _specs_of(folder, facts.elastic, wanted, coder.factor, ours)
    check_autoencoder(folder / "vae", specs[0].sample_shape, field="vae")
    return specs, coder.factor


def _interface(split: Split, depth: int) -> dict[str, object]:
    """Where nobody says, the blocks before Read and behind Write are as many as in the paper's Qwen-Image, 8 of 60."""
    usual = max(1, round(depth * 8 / 60))
    head, tail = (usual if told is None else told for told in (split.head, split.tail))
    if not 0 <= head + tail < depth:
        raise InvalidInput("--head, --tail", (head, tail), f"together fewer than the {depth} blocks of the model")
    return {"window": split.window, "head": head, "core": depth - head - tail, "tail": tail}


def _specs_of(
    folder: Path, kind: type[DenseSpec], sizes: Sequence[Size], factor: int, ours: Mapping[str, object]
) -> list[DenseSpec]:
    """The backbone at each size. ours: the fields that the folder does not say."""
    content = _json(folder, "transformer/config.json")
    name = content.pop("_class_name", None) if isinstance(content, dict) else None
    if name != kind.their_class:
        problem = f"transformer/config.json: _class_name: {name!r} is not allowed; this pipeline has {kind.their_class}"
        raise CheckpointError(folder, [problem])
    found: list[DenseSpec] = []
    for size in sizes:
        for side in size:
            if side % factor:
                allowed = f"multiples of {factor}, as {nearest_multiples(side, factor)}"
                raise InvalidInput("--sizes", str(size), allowed)
        height, width = size.height // factor, size.width // factor
        try:
            spec = kind.of_configuration(content, height=height, width=width, **ours)
        except InvalidSpec as error:
            problems = [f"transformer/config.json: {InvalidSpec([problem])}" for problem in error.problems]
            raise CheckpointError(folder, problems) from None
        found.append(spec)
    return found


def _max_tokens(folder: Path, wanted: int | None) -> int:
    if wanted is not None:
        if not 1 <= wanted <= MAX_TEXT_TOKENS:
            raise InvalidInput("--max-tokens", wanted, f"1 to {MAX_TEXT_TOKENS}")
        return wanted
    told = _read(folder, "tokenizer/tokenizer_config.json", _Tokenizer).model_max_length
    if told is None or not 1 <= told <= MAX_TEXT_TOKENS:
        raise InvalidInput("--max-tokens", wanted, f"1 to {MAX_TEXT_TOKENS}; the folder's tokenizer does not say it")
    return int(told)


def _weight_files(folder: Path) -> Iterator[str]:
    """Of the transformer, as a model's configuration names them: one file, or those of an index."""
    name = "diffusion_pytorch_model.safetensors"
    if (folder / "transformer" / f"{name}.index.json").exists():
        shards = _read(folder, f"transformer/{name}.index.json", _Shards)
        yield from sorted({f"transformer/{file}" for file in shards.weight_map.values()})
    else:
        yield f"transformer/{name}"


def _json(folder: Path, name: str) -> Any:
    try:
        return from_json(read_file(folder / name, MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CheckpointError(folder, [f"{name} cannot be read: {reason}"]) from None


def _read(folder: Path, name: str, kind: type[M]) -> M:
    try:
        return kind.model_validate(_json(folder, name))
    except ValidationError as error:
        raise CheckpointError(folder, [f"{name}: {problem}" for problem in problems_in(error)]) from None


def _write(target: Path, config: ModelConfig) -> None:
    """All of the file or none of it."""
    staging = target.with_name(".config.json.new")
    try:
        staging.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        staging.replace(target)
    except OSError as error:
        raise CheckpointError(target.parent, [f"config.json cannot be written: {error.strerror or error}"]) from None
