"""Encoders of transformers, from two folders of a model directory: `text_encoder/` and `tokenizer/`, as diffusers and
transformers write them. Nothing but local files, no code from them, and weights in safetensors only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from pydantic_core import from_json
from torch import Tensor

from elit_serve.engine.text_encoders.encoder import TextEncoderKind, on_device
from elit_serve.errors import CheckpointError, MissingPackage
from elit_serve.files.config import Strict
from elit_serve.files.opening import MAX_JSON_BYTES, MAX_TOKENIZER_BYTES, read_file, regular_folder
from elit_serve.nn.text import packed

ENCODER, TOKENIZER = "text_encoder", "tokenizer"
CLASS_NAME = re.compile(r"^[A-Za-z0-9_]+Model$")  # of bare models: what has a head answers something else


class TransformersFields(Strict):
    """layer: whose output the tokens are, counted as `hidden_states` of transformers are, where 0 is the embeddings and
    -1 the last; None is the model's own last state, behind its last norm."""

    layer: int | None = Field(default=None, ge=-1000, le=1000)


class TransformersEncoder:
    """A model of transformers and its tokenizer, in bfloat16 on a GPU and in float32 on a CPU.

    All prompts are padded to T tokens, so that one shape of everything is computed.
    """

    def __init__(self, model: Path, fields: TransformersFields, max_tokens: int, device: torch.device) -> None:
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.max_tokens = max_tokens
        self._layer = fields.layer
        self._tokenizer = _load_tokenizer(model / TOKENIZER)
        self._encoder = _load_encoder(model / ENCODER, self.dtype).to(device).eval().requires_grad_(False)
        self._device = device
        self.dim = self._states(["a"])[0].shape[-1]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        states, mask = self._states(prompts)
        return packed(states.to(self.dtype), mask, self.max_tokens)

    @torch.inference_mode()
    def _states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """-> [B, T, D], [B, T]"""
        tokens = self._tokenizer(
            list(prompts), padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        ids, mask = (on_device(tokens[name], self._device) for name in ("input_ids", "attention_mask"))
        output = self._encoder(input_ids=ids, attention_mask=mask, output_hidden_states=self._layer is not None)
        return output.last_hidden_state if self._layer is None else output.hidden_states[self._layer], mask


def _load_tokenizer(folder: Path) -> Any:
    library = _library()
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(
            str(regular_folder(folder, MAX_TOKENIZER_BYTES)), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # what it raises of damaged files is of many kinds
        raise _unfit(folder, error) from None
    if tokenizer.pad_token is None:  # those of decoders have none; what stands in padding is masked
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise CheckpointError(folder.parent, [f"{folder.name}/: it has no token for padding"])
    tokenizer.padding_side = "right"
    return tokenizer


def _load_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """Of the class that `config.json` names, with all of its weights: of what is missing, transformers would draw."""
    library = _library()
    try:
        with no_progress_bar(library):
            model, found = _class_of(folder, library).from_pretrained(
                str(regular_folder(folder)),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=dtype,
                output_loading_info=True,
            )
    except CheckpointError:
        raise
    except Exception as error:  # as above
        raise _unfit(folder, error) from None
    if wrong := [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]:
        named = ", ".join(sorted(map(str, wrong))[:3])
        raise CheckpointError(folder.parent, [f"{folder.name}/: its weights lack {len(wrong)} tensors, as {named}"])
    return model


def _class_of(folder: Path, library: Any) -> Any:
    content = from_json(read_file(folder / "config.json", MAX_JSON_BYTES))
    names = content.get("architectures") if isinstance(content, dict) else None
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    found = getattr(library, name, None) if isinstance(name, str) and CLASS_NAME.match(name) else None
    if not (isinstance(found, type) and issubclass(found, library.PreTrainedModel)):
        problem = f"{folder.name}/config.json: architectures: {names!r} is not allowed; one model of transformers"
        raise CheckpointError(folder.parent, [f"{problem} without a head, as T5EncoderModel or CLIPTextModel"])
    return found


@contextmanager
def no_progress_bar(library: Any) -> Iterator[None]:
    """While transformers, which is `library`, loads weights: logs may be JSON, and a bar is none."""
    shows = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows:
            library.utils.logging.enable_progress_bar()


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingPackage("transformers", "text") from None
    return transformers


def _unfit(folder: Path, error: Exception) -> CheckpointError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(folder.parent, [f"{folder.name}/: transformers cannot read it: {reason}"])


def _make(
    model: Path, fields: TransformersFields, dim: int, max_tokens: int, device: torch.device
) -> TransformersEncoder:
    encoder = TransformersEncoder(model, fields, max_tokens, device)
    if encoder.dim != dim:
        raise CheckpointError(model, [f"conditions.dim is {dim}, and tokens of {ENCODER}/ are {encoder.dim} wide"])
    return encoder


KIND = TextEncoderKind(make=_make, fields=TransformersFields, files=(ENCODER, TOKENIZER))
