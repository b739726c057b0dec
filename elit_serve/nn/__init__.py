"""Elastic diffusion transformers in plain torch; knows nothing of files, requests or servers."""

from elit_serve.nn.backbones.dit import Backbone, DiT, ElitDiT
from elit_serve.nn.flops import Flops, flops_forward
from elit_serve.nn.registry import build, build_empty, count_parameters, preset, preset_names
from elit_serve.nn.spec import BackboneSpec, InterfaceSpec

__all__ = [
    "Backbone",
    "BackboneSpec",
    "DiT",
    "ElitDiT",
    "Flops",
    "InterfaceSpec",
    "build",
    "build_empty",
    "count_parameters",
    "flops_forward",
    "preset",
    "preset_names",
]
