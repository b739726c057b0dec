"""What makes tensors of prompts. A kind of encoder is a file here and a line in `table.py`."""

from elit_serve.engine.text_encoders.encoder import TextEncoder

__all__ = ["TextEncoder"]
