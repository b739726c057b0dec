"""Tiny random folders in diffusers' format, of the real classes, made on the spot: one builder for each family."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "red", "green", "small", "tulip", "rose", "daisy", "on", "grass", "photo", "of", "the")
MAX_TOKENS = 7
SIZE = 16  # pixels a side of the pictures of all families
WIDE = f"{2 * SIZE}x{SIZE}"  # what some make besides


CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}{{ ' photo' if enable_thinking else ' grass' }}"


def tokenizer(max_length: int = MAX_TOKENS, side: str = "right") -> Any:
    """Of whole words; asked as in a chat, it adds one that says whether thinking is allowed."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("<pad>", "<unk>", "</s>")
    vocabulary = {word: index for index, word in enumerate((*special, *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=max_length,
        padding_side=side,
        chat_template=CHAT,
    )


def randomised(module: Any) -> Any:
    """None of its parameters are zero, so that everything matters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return module.eval()


def autoencoder_kl(channels: int) -> Any:
    """Four pixels for each element of a sample."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=0.36,
        shift_factor=0.12,
    )


def prx() -> Any:
    """PRX, with the text encoder and the shift of the published ones."""
    from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXTransformer2DModel
    from transformers import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    text_encoder = T5GemmaEncoder(
        T5GemmaModuleConfig(
            vocab_size=15,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            dropout_rate=0.0,
        )
    )
    transformer = PRXTransformer2DModel(
        in_channels=4,
        patch_size=2,
        context_in_dim=16,
        hidden_size=32,
        mlp_ratio=1.5,
        num_heads=2,
        depth=3,
        axes_dim=[8, 8],
    )
    return PRXPipeline(
        transformer=randomised(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=randomised(text_encoder),
        tokenizer=tokenizer(),
        vae=randomised(autoencoder_kl(4)),
        default_sample_size=SIZE,
    )


def qwen_image() -> Any:
    """Qwen-Image, with a text encoder that has eyes of the smallest size, and the shift of the published one."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": 15,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }
    eyes = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    text_encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=eyes))
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 1.0, 0.5],
    )
    return QwenImagePipeline(
        transformer=randomised(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        text_encoder=randomised(text_encoder),
        tokenizer=tokenizer(1024),
        vae=randomised(vae),
    )


def qwen3(num_layers: int) -> Any:
    """A language model with its head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=15,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return Qwen3ForCausalLM(config)


def flux2_klein() -> Any:
    """FLUX.2-klein, whose prompts are three inner states of a language model, the last behind 27 of 30 layers."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        mlp_ratio=1.5,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_(0, 0.2)
    vae.bn.running_var.uniform_(0.5, 2)
    return Flux2KleinPipeline(
        transformer=randomised(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        text_encoder=randomised(qwen3(30)),
        tokenizer=tokenizer(1024),
        vae=randomised(vae),
    )


def z_image() -> Any:
    """Z-Image, with a shift that grows with the size."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 32, 32],
    )
    return ZImagePipeline(
        transformer=randomised(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=randomised(qwen3(2).model),
        tokenizer=tokenizer(1024),
        vae=randomised(autoencoder_kl(4)),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "prx": prx,
    "qwen-image": qwen_image,
    "flux2-klein": flux2_klein,
    "z-image": z_image,
}

SIZES = [f"{SIZE}x{SIZE}", WIDE]
IMPORTED: dict[str, dict[str, Any]] = {  # what `import_folder` is told besides
    "prx": {},
    "qwen-image": {"sizes": SIZES, "max_tokens": 64},
    "flux2-klein": {"sizes": SIZES, "max_tokens": 12},
    "z-image": {"sizes": SIZES, "max_tokens": 40},
}


def pipeline_of(family: str) -> Any:
    """A pipeline of this family; the same each time."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of parts of diffusers' own
        torch.manual_seed(0)
        pipeline = FAMILIES[family]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_folder(family: str, folder: Path) -> Path:
    """A pipeline of this family, saved as diffusers does."""
    pipeline_of(family).save_pretrained(folder)
    return folder
