import functools

import jax
import numpy as np
import pytest
from latent_cases import from_torch, libraries, load_vae, make_vae, normal, relative, to_torch


@pytest.mark.parametrize("kind", ["kl", pytest.param("kl_other", marks=pytest.mark.slow), "vq"])
def test_encoder_and_decoder_equal_diffusers(tmp_path, kind):
    torch, _, _ = libraries()
    theirs = make_vae(kind)
    theirs.save_pretrained(tmp_path)
    model, params = load_vae(tmp_path)
    run = functools.partial(jax.jit(model.apply, static_argnames="method"), {"params": params})
    images = np.clip(normal(1, 2, 16, 16, 3), -1, 1)
    scale, shift = theirs.config.scaling_factor, theirs.config.get("shift_factor") or 0.0
    with torch.no_grad():
        encoded = theirs.encode(to_torch(images))
        mean = encoded.latents if kind == "vq" else encoded.latent_dist.mean
        latents = (mean - shift) * scale
        decoded = from_torch(theirs.decode(latents / scale + shift).sample)
        ours = run(images, method="encode")
        assert relative(ours, from_torch(latents)) < 1e-5
        assert relative(run(from_torch(latents), method="decode"), decoded) < 1e-5
        if kind != "vq":
            noise = normal(2, *ours.shape)
            drawn = (mean + encoded.latent_dist.std * to_torch(noise) - shift) * scale
            assert relative(run(images, noise, method="encode"), from_torch(drawn)) < 1e-5
