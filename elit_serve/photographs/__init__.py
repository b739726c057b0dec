"""Labelled or captioned photographs: which ones a folder or a tar holds, and what each looks like in RGB.

Everything that reads photographs (training, evaluation, references, sheets) opens a `DataSet` and calls `decode`, so
all of it sees the same pictures. Knows Pillow and numpy, and nothing else of elit-serve but its errors and bounds.
Nothing is ever extracted to disk.
"""

from elit_serve.photographs.captions import open_captioned_set
from elit_serve.photographs.data_set import DataSet, Part, open_data_set
from elit_serve.photographs.photograph import Photograph, decode, size_of
from elit_serve.photographs.prompts import read_prompts
from elit_serve.photographs.rgb import MAX_PIXELS, to_rgb

__all__ = [
    "MAX_PIXELS",
    "DataSet",
    "Part",
    "Photograph",
    "decode",
    "open_captioned_set",
    "open_data_set",
    "read_prompts",
    "size_of",
    "to_rgb",
]
