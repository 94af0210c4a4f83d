import numpy as np
import pytest
from latent_cases import normal

from pds_jax.latent.codec import Codec, in_tiles, spans
from pds_jax.latent.folder import load_pipeline
from pds_jax.types import PdsError


@pytest.mark.parametrize(("side", "tile"), [(8, 8), (5, 8), (9, 8), (64, 16), (97, 32)])
def test_tiles_cover_a_side_and_overlap(side, tile):
    found = list(spans(side, tile))
    assert found[0][0] == 0 and found[-1][1] == side
    assert {end - start for start, end in found} == {min(side, tile)}
    for (_, end), (start, _) in zip(found, found[1:], strict=False):
        assert end - start >= tile // 4


def test_tiles_of_a_local_decoder_give_the_whole_image():
    latents = normal(0, 21, 13, 3)

    def double(z):
        return np.repeat(np.repeat(z, 2, axis=1), 2, axis=2)

    np.testing.assert_allclose(in_tiles(double, latents, 8, 2), double(latents[None])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_tiles_of_a_real_decoder_come_near_the_whole_image(pipelines):
    pipe = load_pipeline(pipelines("sd1")[0])
    latents = normal(0, 1, 24, 8, 4)
    whole = Codec(pipe.autoencoder, pipe.autoencoder_params).decode(latents)
    tiled = Codec(pipe.autoencoder, pipe.autoencoder_params, tile=16).decode(latents)
    assert whole.shape == tiled.shape == (1, 48, 16, 3)
    assert 0 < np.abs(whole - tiled).mean() < 0.3 * whole.std()
    with pytest.raises(PdsError, match="at least 8"):
        Codec(pipe.autoencoder, pipe.autoencoder_params, tile=4)


def test_encoding_depends_on_the_seed_and_not_on_the_batch(pipelines):
    pipe = load_pipeline(pipelines("sd1")[0])
    codec = Codec(pipe.autoencoder, pipe.autoencoder_params)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    found = codec.encode(images, [7, 8, 9])
    assert found.shape == (3, 8, 8, 4)
    np.testing.assert_array_equal(codec.encode(images[1:2], [8]), found[1:2])
    np.testing.assert_array_equal(codec.encode(images / np.float32(255), [7, 8, 9]), found)
    assert np.abs(codec.encode(images) - found).max() > 1e-3
    with pytest.raises(PdsError, match="multiples of 2"):
        codec.encode(images[:, :15])


@pytest.mark.slow
def test_memory_of_the_decoder_is_less_in_tiles(pipelines):
    pipe = load_pipeline(pipelines("sd1")[0])
    whole, tiled = (
        Codec(pipe.autoencoder, pipe.autoencoder_params, tile).decoder_bytes((32, 32)) for tile in (None, 8)
    )
    assert 0 < tiled < whole
