"""Small random encoders of transformers and a tokenizer, made on the spot, as the folders that a model has them in."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch


def save_tokenizer(model: Path, **special: str) -> Path:
    """`tokenizer/` of a model: a token for each letter, and one for whatever else there is."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = special or {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *string.ascii_letters])}
    tokenizer: Any = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = model / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def save_t5(model: Path, *, dim: int = 8, seed: int = 0) -> Path:
    """`text_encoder/` of a model: the encoder of a T5."""
    from transformers import T5Config, T5EncoderModel

    return _saved(
        T5EncoderModel, T5Config(vocab_size=64, d_model=dim, d_ff=16, num_layers=2, num_heads=2, d_kv=4), model, seed
    )


def save_clip(model: Path, *, dim: int = 8, seed: int = 0) -> Path:
    """`text_encoder/` of a model: the text encoder of a CLIP."""
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"vocab_size": 64, "hidden_size": dim, "intermediate_size": 16, "projection_dim": dim, "eos_token_id": 1}
    config = CLIPTextConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16)
    return _saved(CLIPTextModel, config, model, seed)


def _saved(kind: Any, config: Any, model: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind(config).save_pretrained(model / "text_encoder")
    return model / "text_encoder"
