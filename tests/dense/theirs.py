"""How diffusers' own modules and pipelines are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from dense.folders import IMPORTED, SIZE, pipeline_of
from diffusers import Flux2KleinPipeline
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


def of_flux2(net: Any, x: Tensor, sigma: Tensor, states: Tensor) -> Tensor:
    texts = Flux2KleinPipeline._prepare_text_ids(states)
    places = Flux2KleinPipeline._prepare_latent_ids(x)
    tokens = x.flatten(2).transpose(1, 2)
    answer = net(tokens, encoder_hidden_states=states, timestep=sigma, img_ids=places, txt_ids=texts).sample
    return answer.transpose(1, 2).reshape(x.shape)


def of_z_image(net: Any, x: Tensor, sigma: Tensor, states: Tensor) -> Tensor:
    (answer,) = net([x[0].unsqueeze(1)], 1 - sigma, [states[0]]).sample
    return -answer.transpose(0, 1)


ANSWERS: dict[str, Answer] = {
    "PRXTransformer2DModel": of_prx,
    "QwenImageTransformer2DModel": of_qwen_image,
    "Flux2Transformer2DModel": of_flux2,
    "ZImageTransformer2DModel": of_z_image,
}


def their_answer(net: Any, x: Tensor, sigma: Tensor, states: Tensor) -> Tensor:
    """noise - data [1, C, H, W] at x [1, C, H, W] and sigma [1], told the states [1, T, D] of a prompt's tokens."""
    return ANSWERS[type(net).__name__](net, x, sigma, states)


def told_klein(pipeline: Any, negative: str, scale: float) -> dict[str, Any]:
    """It takes no words for a negative prompt, but what they become."""
    length = IMPORTED["flux2-klein"]["max_tokens"]
    states, _ = pipeline.encode_prompt(negative, max_sequence_length=length)
    return {"guidance_scale": scale, "negative_prompt_embeds": states, "max_sequence_length": length}


SETTINGS: dict[str, Callable[[Any, str, float], dict[str, Any]]] = {  # what a pipeline is told: how it is guided
    "prx": lambda _, negative, scale: {
        "negative_prompt": negative,
        "guidance_scale": scale,
        "use_resolution_binning": False,
    },
    "qwen-image": lambda _, negative, scale: {"negative_prompt": negative, "true_cfg_scale": scale},
    "flux2-klein": told_klein,
    "z-image": lambda _, negative, scale: {"negative_prompt": negative, "guidance_scale": scale - 1},
}


def their_picture(
    family: str,
    prompt: str,
    negative: str,
    *,
    steps: int,
    scale: float,
    seed: int,
    width: int = SIZE,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """By diffusers' own pipeline, which draws its own noise: [3, H, W] in [0, 1]"""
    pipeline = pipeline_of(family).to(dtype)
    made = pipeline(
        prompt=prompt,
        height=SIZE,
        width=width,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        **SETTINGS[family](pipeline, negative, scale),
    )
    return made.images[0].float()
