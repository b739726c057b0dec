"""Between pictures and the samples that a model works on: one file for each kind, and a table of them."""

from elit_serve.engine.autoencoders.autoencoder import Autoencoder, PictureSizes
from elit_serve.engine.autoencoders.choice import GIVEN, AutoencoderChoice, choose_autoencoders
from elit_serve.engine.autoencoders.table import KINDS, kind_of, open_autoencoder, picture_sizes_of

__all__ = [
    "GIVEN",
    "KINDS",
    "Autoencoder",
    "AutoencoderChoice",
    "PictureSizes",
    "choose_autoencoders",
    "kind_of",
    "open_autoencoder",
    "picture_sizes_of",
]
