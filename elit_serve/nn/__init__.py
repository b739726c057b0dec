"""Elastic diffusion transformers in plain torch; knows nothing of files, requests or servers."""

from elit_serve.nn.backbones.backbone import Backbone, BackboneSpec
from elit_serve.nn.backbones.dit import DiT, DiTSpec
from elit_serve.nn.backbones.elit import ElitSpec, InterfaceSpec
from elit_serve.nn.backbones.elit_dit import ElitDiT, ElitDiTSpec
from elit_serve.nn.backbones.elit_sit import ElitSiT, ElitSiTSpec
from elit_serve.nn.backbones.sit import SiT, SiTSpec
from elit_serve.nn.backbones.table import (
    build,
    build_empty,
    count_parameters,
    parse_spec,
    preset,
    preset_conditions,
    preset_names,
)
from elit_serve.nn.fields import InvalidSpec
from elit_serve.nn.flops import Flops

__all__ = [
    "Backbone",
    "BackboneSpec",
    "DiT",
    "DiTSpec",
    "ElitDiT",
    "ElitDiTSpec",
    "ElitSiT",
    "ElitSiTSpec",
    "ElitSpec",
    "Flops",
    "InterfaceSpec",
    "InvalidSpec",
    "SiT",
    "SiTSpec",
    "build",
    "build_empty",
    "count_parameters",
    "parse_spec",
    "preset",
    "preset_conditions",
    "preset_names",
]
