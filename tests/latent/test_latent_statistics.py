import numpy as np
import pytest
from latent_cases import normal

from pds_jax.latent.codec import Codec
from pds_jax.latent.folder import load_pipeline
from pds_jax.latent.statistics import check_statistics, encoded, latent_statistics
from pds_jax.statistics import compute_statistics, load
from pds_jax.types import PdsError


def test_numbers_are_those_of_the_latents(tmp_path):
    z = 2 * normal(0, 40, 6, 8, 4) + 1
    found = latent_statistics([z[:30], z[30:]], {"made": "here"})
    np.testing.assert_allclose(found.mean, z.mean(0), rtol=1e-5, atol=1e-5)
    spectrum = np.abs(np.fft.rfft2(z - z.mean(0), axes=(1, 2))) ** 2
    np.testing.assert_allclose(found.power, spectrum.mean(0) / 48, rtol=1e-3)
    np.testing.assert_allclose(found.r_a, (z**2).mean(0), rtol=1e-5)
    np.testing.assert_array_equal(found.to_range(False)[0], found.mean)
    found.save(tmp_path / "latents.npz")
    assert check_statistics(load(tmp_path / "latents.npz"), "latents.npz").provenance["source"] == {"made": "here"}


def test_statistics_of_images_are_refused():
    with pytest.raises(PdsError, match="statistics of images"):
        check_statistics(compute_statistics([np.zeros((2, 4, 4, 3), np.uint8)]), "x.npz")
    with pytest.raises(PdsError, match="NaN"):
        latent_statistics([np.full((1, 4, 4, 4), np.nan)], {})


def test_images_go_through_the_encoder(pipelines):
    pipe = load_pipeline(pipelines("sd1")[0])
    codec = Codec(pipe.autoencoder, pipe.autoencoder_params)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    latents = np.concatenate(list(encoded([images[:2], images[2:]], codec)))
    np.testing.assert_array_equal(latents, codec.encode(images, range(5)))
    assert latent_statistics([latents], {}).shape == (8, 8, 4)
