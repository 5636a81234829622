"""The guider of diffusers' modular pipelines, in a pipeline's own block."""

from types import SimpleNamespace

import pytest
import torch

from sims_core.errors import InputError
from tests.core import foreign

pytest.importorskip("diffusers.modular_pipelines.stable_diffusion_xl")
from diffusers.guiders import ClassifierFreeGuidance, PerturbedAttentionGuidance
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLLoopDenoiser

from sims_core.guider import SIMSGuidance

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
WORDS = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(1))
STEPS = 4


def unet():
    """A UNet2DConditionModel as SDXL's."""
    return foreign.seeded(
        lambda: foreign.diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=8,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
            addition_time_embed_dim=4, projection_class_embeddings_input_dim=8 + 6 * 4,
        )
    )  # fmt: skip


def denoised(network, guider, step=1):
    """What the pipeline's own block predicts."""
    state = BlockState(
        prompt_embeds=WORDS[0], negative_prompt_embeds=WORDS[1], num_inference_steps=STEPS, scaled_latents=X,
        pooled_prompt_embeds=torch.ones(2, 8), negative_pooled_prompt_embeds=torch.zeros(2, 8), timestep_cond=None,
        add_time_ids=torch.ones(2, 6), negative_add_time_ids=torch.ones(2, 6), cross_attention_kwargs=None,
    )  # fmt: skip
    _, made = StableDiffusionXLLoopDenoiser()(SimpleNamespace(guider=guider, unet=network), state, i=step, t=300)
    return made.noise_pred


def pair(kind):
    """(network, the auxiliary as the guider is told it, the base and the auxiliary as networks of their own)."""
    base, alone = unet(), unet()
    if kind == "module":
        other = foreign.moved(base)
        return base, other, alone, other
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "conv1"], init_lora_weights=False)
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        base.add_adapter(config, adapter_name="aux")
    return base, "aux", alone, base


@pytest.mark.parametrize("kind", ["module", "adapter"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_guider_is_the_loop_of_two_networks(kind, scale):
    """SIMS within classifier-free guidance: (1 + omega) base - omega auxiliary of either condition."""
    network, auxiliary, base, other = pair(kind)
    first, second = (denoised(one, ClassifierFreeGuidance(scale)) for one in (base, other))
    guider = SIMSGuidance(auxiliary, 1.5, ClassifierFreeGuidance(scale))
    assert guider.num_conditions == 1 + (scale > 1)
    torch.testing.assert_close(denoised(network, guider), 2.5 * first - 1.5 * second, rtol=1e-5, atol=1e-5)
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(denoised(other, ClassifierFreeGuidance(scale)), second, rtol=0, atol=0)  # as it was


@pytest.mark.parametrize("kind", ["module", "adapter"])
def test_the_base_bit_for_bit_where_nothing_is_guided(kind):
    network, auxiliary, base, _ = pair(kind)
    alone = denoised(base, ClassifierFreeGuidance(3.0))
    late = SIMSGuidance(auxiliary, 1.5, ClassifierFreeGuidance(3.0), start=0.5)
    assert torch.equal(denoised(network, late), alone) and not torch.equal(denoised(network, late, step=2), alone)
    zero = late.new(omega=0.0, start=0.0)
    assert torch.equal(denoised(network, zero), alone) and zero.config["omega"] == 0.0
    late.disable()
    assert torch.equal(denoised(network, late, step=2), denoised(base, ClassifierFreeGuidance(1.0)))


def test_guiders_that_change_the_network_keep_their_place():
    """Perturbed attention skips layers in its own pass: of the base, and of the auxiliary."""

    def perturbed():
        config = foreign.diffusers.hooks.LayerSkipConfig(indices=[0], fqn="mid_block.attentions.0.transformer_blocks")
        return PerturbedAttentionGuidance(
            3.0, perturbed_guidance_scale=2.0, perturbed_guidance_config=config, perturbed_guidance_start=0.0
        )

    network, other, base, _ = pair("module")
    first, second = (denoised(one, perturbed()) for one in (base, foreign.moved(base)))
    torch.testing.assert_close(
        denoised(network, SIMSGuidance(other, 1.5, perturbed())), 2.5 * first - 1.5 * second, rtol=1e-5, atol=1e-5
    )


def test_what_cannot_be_done_is_one_line():
    with pytest.raises(InputError, match="omega: got 'inf'; give a finite number"):
        SIMSGuidance("aux", float("inf"))
    with pytest.raises(InputError, match="auxiliary: got 'other'; the base's adapters are aux"):
        denoised(pair("adapter")[0], SIMSGuidance("other", 1.0))


def test_a_modular_pipeline_takes_it():
    """A pipeline of the library's own, to the last step: the network that `guide` makes."""
    from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep

    from sims_core import guide

    network, other, _, _ = pair("module")
    pipe = StableDiffusionXLDenoiseStep().init_pipeline()
    scheduler = foreign.diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(2)
    fields = {"prompt_embeds": WORDS[0], "negative_prompt_embeds": WORDS[1], "pooled_prompt_embeds": torch.ones(2, 8)}
    fields |= {"negative_pooled_prompt_embeds": torch.zeros(2, 8)}
    fields |= dict.fromkeys(("add_time_ids", "negative_add_time_ids"), torch.ones(2, 6))
    made = []
    for unet, guider in (
        (network, SIMSGuidance(other, 1.5, ClassifierFreeGuidance(3.0))),
        (guide(network, other, 1.5), ClassifierFreeGuidance(3.0)),
    ):
        pipe.update_components(unet=network, scheduler=scheduler, guider=guider)
        pipe.unet = unet
        given = {"timesteps": scheduler.timesteps, "num_inference_steps": 2, "denoiser_input_fields": fields}
        made.append(pipe(latents=X, output="latents", **given))
    torch.testing.assert_close(*made, rtol=1e-5, atol=1e-5)
