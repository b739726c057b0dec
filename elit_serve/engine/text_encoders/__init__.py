"""What makes tensors of prompts: one file for each kind, and a table of them."""

from elit_serve.engine.text_encoders.cache import CachedEncoder
from elit_serve.engine.text_encoders.encoder import TextEncoder, TextEncoderKind
from elit_serve.engine.text_encoders.table import KINDS, copy_encoder, encoder_digest, encoder_problems, open_encoder

__all__ = [
    "KINDS",
    "CachedEncoder",
    "TextEncoder",
    "TextEncoderKind",
    "copy_encoder",
    "encoder_digest",
    "encoder_problems",
    "open_encoder",
]
