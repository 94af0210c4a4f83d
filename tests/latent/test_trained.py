import dataclasses

import numpy as np
import pytest
from latent_cases import normal

from pds_jax import assembly
from pds_jax.latent.statistics import latent_statistics
from pds_jax.latent.trained import load
from pds_jax.statistics import compute_statistics
from pds_jax.types import PdsError


@pytest.fixture(scope="module")
def model(pipelines):
    return load(pipelines("sd1")[0], statistics=latent_statistics([normal(0, 64, 8, 8, 4)], {}))


def given(model, prompt="a red cat", **words):
    return model.given(lambda seed: prompt, **words)


@pytest.mark.slow
def test_images_depend_on_seed_and_prompt_alone(model):
    plan = assembly.plan(model.trained, nfe=3)
    assert plan.nfe == 3 and model.trained.image_shape == (16, 16, 3)
    both = assembly.draw(model.trained, plan, [5, 9], given=given(model)).images
    assert both.shape == (2, 16, 16, 3)
    one = assembly.draw(model.trained, plan, [9], batch_size=2, given=given(model)).images
    np.testing.assert_allclose(one[0], both[1], atol=1e-4)
    other = assembly.draw(model.trained, plan, [9], batch_size=2, given=given(model, "the hats")).images
    assert np.abs(other - one).max() > 1e-3


@pytest.mark.slow
def test_bytes_that_are_saved_are_those_of_the_images(model):
    plan, saved = assembly.plan(model.trained, nfe=3), {}
    images = assembly.draw(model.trained, plan, [5, 9], given=given(model)).pixels

    def save(seeds, pixels):
        saved.update(zip(seeds, pixels, strict=True))

    assembly.draw(model.trained, plan, [5, 9], given=given(model), save=save)
    assert np.abs(saved[9].astype(int) - images[1]).max() <= 1 and saved[9].dtype == np.uint8


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"predictor": "reverse_diffusion", "alpha": 5.0},
        {"predictor": "reverse_diffusion", "corrector": "langevin", "alpha": 5.0},
        {"predictor": "sde_dpmpp_2m", "alpha": 5.0, "prior": "matched", "variant": "exact"},
        {"predictor": "ancestral_sampling", "alpha": 5.0},
        {"predictor": "spectral_dpmpp_2m"},
        {"predictor": "heun", "grid": "edm"},
        {"predictor": "ddim"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_samplers_and_m_act_on_latents_as_on_images(model, options):
    plan = assembly.plan(model.trained, nfe=6, **options)
    found = assembly.draw(model.trained, plan, [1], given=given(model)).images
    assert np.isfinite(found).all() and found.std() > 1e-3
    if "alpha" in options:
        assert not plan.preconditioner.is_identity
        plain = assembly.plan(model.trained, nfe=6, **{**options, "alpha": float("inf"), "filters": "freq"})
        assert np.abs(assembly.draw(model.trained, plain, [1], given=given(model)).images - found).max() > 1e-3


@pytest.mark.slow
def test_a_flat_m_needs_no_statistics_and_is_a_larger_step(model):
    """M = c I on latents: with c = 1 nothing changes; with c the noise of a step is c times as large."""
    bare = dataclasses.replace(model, trained=dataclasses.replace(model.trained, statistics=None))
    words = {"nfe": 4, "predictor": "reverse_diffusion"}

    def latents(**options):
        return bare.latents(assembly.plan(bare.trained, **words, **options), [1], given=given(bare))

    plain, same, wide = latents(), latents(filters="flat", gain=1.0), latents(filters="flat", gain=1.2)
    np.testing.assert_array_equal(same, plain)
    assert np.isfinite(wide).all() and np.abs(wide - plain).max() > 0.05
    m = assembly.plan(bare.trained, **words, filters="flat", gain=1.2).preconditioner
    z = normal(0, 1, 8, 8, 4)
    np.testing.assert_allclose(m.apply(z), 1.2 * z, rtol=1e-5, atol=1e-6)


def test_what_cannot_work_is_refused(model, pipelines):
    path = pipelines("sd1")[0]
    with pytest.raises(PdsError, match="statistics of images"):
        load(path, statistics=compute_statistics([np.zeros((2, 8, 8, 4), np.uint8)]))
    with pytest.raises(PdsError, match=r"\(4, 4, 4\).*\(8, 8, 4\)"):
        load(path, statistics=latent_statistics([normal(0, 4, 4, 4, 4)], {}))
    with pytest.raises(PdsError, match="is a latent diffusion model"):
        assembly.load(str(path))
    with pytest.raises(PdsError, match="multiples of 2"):
        load(path, size=(15, 16))
    with pytest.raises(PdsError, match="give a prompt"):
        assembly.draw(model.trained, assembly.plan(model.trained, nfe=3), [0])
    with pytest.raises(PdsError, match="needs the data's statistics"):
        assembly.plan(load(path).trained, nfe=3, alpha=5.0)
