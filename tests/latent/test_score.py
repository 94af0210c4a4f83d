import dataclasses

import jax
import numpy as np
import pytest
from latent_cases import from_torch, libraries, normal, relative, to_torch

from pds_jax.latent.codec import Codec
from pds_jax.latent.folder import load_pipeline
from pds_jax.latent.score import get_score, get_sde, guided
from pds_jax.sampling import get_pc_sampler

PROMPTS = ["a red cat", "the hats"]


def at_levels(name, sde, shape, levels, last):
    """Our sampler on the noise levels of training that a scheduler of diffusers visits; `last` is what it ends at."""
    sampler = get_pc_sampler(sde.with_num_scales(len(levels)), shape, name, "none", eps=1 / len(levels))
    t = (np.asarray([*levels, last], np.float64) + 1) / len(np.asarray(sde.log_means)[1:])
    rows = sampler.rows
    new_t, new_next = np.array(rows.t), np.array(rows.t_next)
    new_t[: len(levels)], new_next[: len(levels)] = t[:-1], t[1:]
    return dataclasses.replace(sampler, rows=rows.replace(t=new_t, t_next=new_next))


def ours(pipe, name, z, levels, last, weight=7.5):
    score = get_score(pipe)
    sde = get_sde(pipe)
    if pipe.text is not None:
        states = pipe.text.encode([*PROMPTS, ""]).states
        score = guided(score, sde, states[:2], states[2], weight)
    sampler = at_levels(name, sde, z.shape[1:], levels, last)
    run = jax.jit(lambda sampler, z, score: sampler.result(sampler.run_all(sampler.start(z), score)))
    latents = run(sampler, z, score)
    return latents, Codec(pipe.autoencoder, pipe.autoencoder_params).decode(latents)


def theirs(pipe, z, scheduler, steps):
    torch, _, _ = libraries()
    pipe.scheduler = scheduler
    words = {"latents": to_torch(z), "num_inference_steps": steps, "output_type": "np"}
    with torch.no_grad():
        return pipe(prompt=PROMPTS, guidance_scale=7.5, height=16, width=16, **words).images


@pytest.mark.parametrize("kind", ["sd1", pytest.param("sd2", marks=pytest.mark.slow)])
def test_images_equal_the_pipelines_with_ddim(pipelines, kind):
    folder, pipe = pipelines(kind)
    _, diffusers, _ = libraries()
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    z = normal(3, 2, 8, 8, 4)
    expected = theirs(pipe, z, scheduler, 6)
    _, images = ours(load_pipeline(folder), "ddim", z, scheduler.timesteps.tolist(), 0)
    assert relative(np.clip(images, 0, 1), expected) < 1e-4
    assert expected.std() > 0.05


@pytest.mark.slow
def test_images_equal_the_unconditional_pipelines(pipelines):
    """LDMPipeline with its VQModel, whose decoder takes the nearest codes: one other code would be seen."""
    folder, pipe = pipelines("ldm")
    torch, diffusers, _ = libraries()
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    pipe.scheduler = scheduler
    words = {"batch_size": 2, "num_inference_steps": 6, "output_type": "np"}
    with torch.no_grad():
        expected = pipe(generator=torch.Generator().manual_seed(3), **words).images
    z = from_torch(torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(3)))
    _, images = ours(load_pipeline(folder), "ddim", z, scheduler.timesteps.tolist(), 0)
    assert relative(np.clip(images, 0, 1), expected) < 1e-4
    assert expected.std() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_images_equal_the_pipelines_with_dpm_solver(pipelines, kind):
    folder, pipe = pipelines(kind)
    _, diffusers, _ = libraries()
    scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    z = normal(3, 2, 8, 8, 4)
    expected = theirs(pipe, z, scheduler, 7)
    _, images = ours(load_pipeline(folder), "dpmpp_2m", z, scheduler.timesteps.tolist(), -1)
    assert relative(np.clip(images, 0, 1), expected) < 1e-4
