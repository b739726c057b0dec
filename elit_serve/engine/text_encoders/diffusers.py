"""The text encoders of diffusers' pipelines, from a folder of a whole pipeline: its own way from prompts to tensors.

Of the pipeline nothing else is loaded. Nothing but local files, no code from them, and weights in safetensors only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic_core import from_json
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from elit_serve.engine.text_encoders.encoder import NoFields, TextEncoderKind
from elit_serve.engine.text_encoders.transformers import ENCODER, TOKENIZER, no_progress_bar
from elit_serve.errors import CheckpointError, MissingPackage
from elit_serve.files.opening import MAX_JSON_BYTES, MAX_TOKENIZER_BYTES, read_file, regular_folder
from elit_serve.nn.text import packed

PACKAGES = ("diffusers", "transformers", "ftfy")
KLEIN_LAYERS = 28  # of 36: it takes the states behind 9, 18 and 27, and a last layer's is normed besides


@dataclass(frozen=True, kw_only=True)
class PipelineText:
    """What one pipeline of diffusers does with prompts.

    encoder: the class of its text encoder and its configuration, of the folder where both lie.
    encode: prompts and the most tokens of each that are kept -> their states [B, T, D] and mask [B, T], by a pipeline
        without its other parts.
    layers: how many of the encoder's layers that needs; None is all of them.
    """

    encoder: Callable[[Path], tuple[Any, Any]]
    encode: Callable[[Any, list[str], int], tuple[Tensor, Tensor]]
    layers: int | None = None


def _t5gemma_encoder(folder: Path) -> tuple[Any, Any]:
    """Saved with its own configuration, or with that of the whole T5Gemma that it is the half of."""
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaConfig, T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    kind = from_json(read_file(folder / "config.json", MAX_JSON_BYTES)).get("model_type")
    if kind == T5GemmaConfig.model_type:
        return T5GemmaEncoder, T5GemmaConfig.from_pretrained(str(folder), local_files_only=True).encoder
    return T5GemmaEncoder, T5GemmaModuleConfig.from_pretrained(str(folder), local_files_only=True)


def _of_prx(pipeline: Any, prompts: list[str], max_tokens: int) -> tuple[Tensor, Tensor]:
    """By itself it fills prompts up to what its tokenizer says; one without a limit says far more than there can be."""
    states, mask, _, _ = pipeline.encode_prompt(
        prompts,
        pipeline.text_encoder.device,
        do_classifier_free_guidance=False,
        tokenizer_max_length=max_tokens,
    )
    return states, mask


def _qwen_encoder(folder: Path) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig.from_pretrained(str(folder), local_files_only=True)
    return Qwen2_5_VLForConditionalGeneration, config


def _of_qwen_image(pipeline: Any, prompts: list[str], max_tokens: int) -> tuple[Tensor, Tensor]:
    states, mask = pipeline.encode_prompt(prompts, pipeline.text_encoder.device, max_sequence_length=max_tokens)
    return states, torch.ones(states.shape[:2], device=states.device) if mask is None else mask


def _qwen3_encoder(folder: Path) -> tuple[Any, Any]:
    """Without its head, whose words nobody asks for; it may have been saved with one."""
    from transformers import Qwen3Config, Qwen3Model

    class WithoutHead(Qwen3Model):  # type: ignore[no-untyped-call]
        _keys_to_ignore_on_load_unexpected = {"lm_head"}  # noqa: RUF012 (as transformers has it)

    return WithoutHead, Qwen3Config.from_pretrained(str(folder), local_files_only=True)


def _of_flux2_klein(pipeline: Any, prompts: list[str], max_tokens: int) -> tuple[Tensor, Tensor]:
    """It fills prompts up, and its transformer attends to what stands in padding, too."""
    states, _ = pipeline.encode_prompt(prompts, pipeline.text_encoder.device, max_sequence_length=max_tokens)
    return states, torch.ones(states.shape[:2], device=states.device)


def _of_z_image(pipeline: Any, prompts: list[str], max_tokens: int) -> tuple[Tensor, Tensor]:
    found, _ = pipeline.encode_prompt(
        prompts, pipeline.text_encoder.device, do_classifier_free_guidance=False, max_sequence_length=max_tokens
    )
    masks = [states.new_ones(len(states)) for states in found]
    return pad_sequence(found, batch_first=True), pad_sequence(masks, batch_first=True)


PIPELINES = {
    "PRXPipeline": PipelineText(encoder=_t5gemma_encoder, encode=_of_prx),
    "QwenImagePipeline": PipelineText(encoder=_qwen_encoder, encode=_of_qwen_image),
    "Flux2KleinPipeline": PipelineText(encoder=_qwen3_encoder, encode=_of_flux2_klein, layers=KLEIN_LAYERS),
    "ZImagePipeline": PipelineText(encoder=_qwen3_encoder, encode=_of_z_image),
}


class DiffusersEncoder:
    """A pipeline's tokenizer and text encoder, in bfloat16 on a GPU and in float32 on a CPU."""

    def __init__(self, model: Path, dim: int, max_tokens: int, device: torch.device) -> None:
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.dim, self.max_tokens, self._model = dim, max_tokens, model
        name = pipeline_name(model)
        self._encode = PIPELINES[name].encode
        self._pipeline = _open(name, model, self.dtype, device)
        found = self._width()
        if found != dim:
            raise CheckpointError(model, [f"text_encoder: its tokens are {found} wide, and conditions.dim is {dim}"])

    def _width(self) -> int:
        """Of an encoded token. Raises `CheckpointError` where its parts are whole and yet not what the pipeline needs:
        a tokenizer without a template for chats, an encoder with too few layers."""
        try:
            return self.encode([""]).shape[-1] - 1
        except Exception as error:  # as in `_open`
            problem = f"text_encoder, tokenizer: no prompt is encoded: {_reason(error)}"
            raise CheckpointError(self._model, [problem]) from None

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        return packed(*self._encode(self._pipeline, list(prompts), self.max_tokens), self.max_tokens)


def pipeline_name(model: Path) -> str:
    """The class of the pipeline in a folder, one of `PIPELINES`. Raises `CheckpointError`."""
    try:
        content = from_json(read_file(model / "model_index.json", MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise CheckpointError(model, [f"model_index.json cannot be read: {error}"]) from None
    name = content.get("_class_name") if isinstance(content, dict) else None
    if not isinstance(name, str) or name not in PIPELINES:
        allowed = ", ".join(PIPELINES)
        raise CheckpointError(model, [f"model_index.json: _class_name: {name!r} is not allowed; one of {allowed}"])
    return name


def _open(name: str, model: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """A pipeline with nothing but its text encoder and tokenizer. Raises `CheckpointError`, `MissingPackage`."""
    try:
        import diffusers
        import ftfy  # noqa: F401 (pipelines clean prompts with it)
        import transformers
    except ImportError:
        raise MissingPackage(" or ".join(PACKAGES), "diffusers") from None
    try:
        regular_folder(model / "text_encoder")
        regular_folder(model / "tokenizer", MAX_TOKENIZER_BYTES)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(model / "tokenizer"), local_files_only=True, trust_remote_code=False
        )
        encoder_class, config = PIPELINES[name].encoder(model / "text_encoder")
        with no_progress_bar(transformers):
            encoder, report = encoder_class.from_pretrained(
                str(model / "text_encoder"),
                config=config,
                local_files_only=True,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
            )
    except Exception as error:  # what it raises of damaged files is of many kinds
        problem = f"no text encoder and tokenizer in diffusers' format: {_reason(error)}"
        raise CheckpointError(model, [problem]) from None
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(model, [f"text_encoder: tensor {missing[0]} is missing, and {len(missing) - 1} more"])
    if PIPELINES[name].layers is not None:
        encoder.layers = encoder.layers[: PIPELINES[name].layers]
    encoder = encoder.to(device).eval().requires_grad_(False)
    others = dict.fromkeys(("transformer", "vae", "scheduler"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of parts of diffusers' own that it calls deprecated
        return getattr(diffusers, name)(text_encoder=encoder, tokenizer=tokenizer, **others)


def _reason(error: Exception) -> str:
    """Its first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _make(model: Path, fields: NoFields, dim: int, max_tokens: int, device: torch.device) -> DiffusersEncoder:  # noqa: ARG001
    return DiffusersEncoder(model, dim, max_tokens, device)


KIND = TextEncoderKind(make=_make, files=("model_index.json", ENCODER, TOKENIZER))
