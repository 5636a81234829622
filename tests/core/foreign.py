"""Tiny networks of other libraries with random weights, for tests."""

import copy

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
diffusers.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()


def moved(network, scale=0.05, seed=1):
    """A copy with perturbed weights: an auxiliary."""
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight += scale * weight.std(correction=0).nan_to_num() * torch.randn(weight.shape, generator=generator)
    return other


def seeded(make, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make().eval()


def unet(channels=3):
    """A UNet2DModel on 8 x 8 images."""
    return seeded(
        lambda: diffusers.UNet2DModel(
            sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(8, 8), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4, attention_head_dim=4,
        )
    )  # fmt: skip


def conditional_unet():
    """A UNet2DConditionModel as Stable Diffusion's."""
    return seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=8,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
    )  # fmt: skip


def autoencoder(factor=1, seed=0):
    """An AutoencoderKL of latents of 4 channels, ``factor`` times smaller than its pictures."""
    blocks = factor.bit_length()
    return seeded(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(8,) * blocks, norm_num_groups=4, sample_size=8,
            down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        ),
        seed,
    )  # fmt: skip


def dit(learned_variance=False):
    """A DiT with a thousand classes on 8 x 8 latents of 4 channels."""
    return seeded(
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8 if learned_variance else 4,
            num_layers=1, sample_size=8, patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=4,
        )
    )  # fmt: skip


def stable_diffusion(network, scheduler):
    """A StableDiffusionPipeline without text encoder: prompts are given as embeddings."""
    pipe = diffusers.StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=None, tokenizer=None, unet=network, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe, steps=4, **settings):
    """Two images of an unconditional pipeline, (2, C, 8, 8) in [0, 1]."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe(batch_size=2, num_inference_steps=steps, generator=generator, output_type="np", **settings).images


def latents(pipe, steps=4, dtype=torch.float32, **settings):
    """A latent of a Stable-Diffusion pipeline at classifier-free guidance 3."""
    given = torch.Generator().manual_seed(3)
    words = torch.randn(2, 1, 5, 8, generator=given).to(dtype)
    return pipe(
        prompt_embeds=words[0], negative_prompt_embeds=words[1], guidance_scale=3.0, num_inference_steps=steps,
        generator=given, output_type="latent", **settings,
    ).images  # fmt: skip
