"""Labelled photographs: which ones a folder or a tar holds, and what each looks like in RGB.

Everything that reads photographs (training, evaluation, references, sheets) opens a `DataSet` and calls `decode`, so
all of it sees the same pictures. Knows Pillow and numpy, and nothing else of elit-serve but its errors. Nothing is ever
extracted to disk.
"""

from elit_serve.photographs.data_set import DataSet, Part, open_data_set
from elit_serve.photographs.photograph import Photograph, decode, size_of
from elit_serve.photographs.rgb import MAX_PIXELS, to_rgb

__all__ = ["MAX_PIXELS", "DataSet", "Part", "Photograph", "decode", "open_data_set", "size_of", "to_rgb"]
