"""How diffusers' own modules and pipelines are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from dense.folders import SIZE, pipeline_of
from torch import Tensor

from elit_serve.nn.interface import patchify, unpatchify

Answer = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def of_prx(net: Any, x: Tensor, sigma: Tensor, states: Tensor) -> Tensor:
    return net(hidden_states=x, timestep=sigma, encoder_hidden_states=states, attention_mask=None).sample


def of_qwen_image(net: Any, x: Tensor, sigma: Tensor, states: Tensor) -> Tensor:
    rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
    patches = patchify(x, patch=2, window=(1, 1))
    shapes = [[(1, rows, columns)]]
    answer = net(hidden_states=patches, timestep=sigma, encoder_hidden_states=states, img_shapes=shapes).sample
    return unpatchify(answer, patch=2, window=(1, 1), height=x.shape[-2], width=x.shape[-1])


ANSWERS: dict[str, Answer] = {"PRXTransformer2DModel": of_prx, "QwenImageTransformer2DModel": of_qwen_image}


def their_answer(net: Any, x: Tensor, sigma: Tensor, states: Tensor) -> Tensor:
    """noise - data [1, C, H, W] at x [1, C, H, W] and sigma [1], told the states [1, T, D] of a prompt's tokens."""
    return ANSWERS[type(net).__name__](net, x, sigma, states)


SETTINGS: dict[str, Callable[[float], dict[str, Any]]] = {  # of a pipeline, for a guidance scale
    "prx": lambda scale: {"guidance_scale": scale, "use_resolution_binning": False},
    "qwen-image": lambda scale: {"true_cfg_scale": scale},
}


def their_picture(family: str, prompt: str, negative: str, *, steps: int, scale: float, seed: int) -> Tensor:
    """By diffusers' own pipeline, which draws its own noise: [3, H, W] in [0, 1]"""
    made = pipeline_of(family)(
        prompt,
        negative_prompt=negative,
        height=SIZE,
        width=SIZE,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        **SETTINGS[family](scale),
    )
    return made.images[0]
