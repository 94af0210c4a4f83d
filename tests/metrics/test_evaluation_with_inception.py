"""--mode=eval with the Inception network, whose weights anyone can rebuild."""

import jax
import numpy as np
import pytest

from pds_jax import checkpoints, statistics
from pds_jax.cli import evaluate as evaluation_job
from pds_jax.cli.options import RunOptions, SamplerOptions
from pds_jax.io.images import save_png
from pds_jax.metrics.extractors import get_extractor
from pds_jax.metrics.frechet import frechet_distance_from_features
from pds_jax.metrics.image_sets import open_images
from pds_jax.models import init_model
from pds_jax.types import PdsError
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny network of 8x8 colour images with random weights, and six images as its data."""
    place, rng = tmp_path_factory.mktemp("inception_eval"), np.random.default_rng(0)
    config = tiny.get_config()
    config.data.update(num_channels=3, dataset=str(place / "data"))
    config.eval.update(batch_size=4, num_samples=4, enable_sampling=True, enable_loss=False)
    shapes = jax.eval_shape(lambda: init_model(jax.random.key(0), config))
    params = jax.tree.map(lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    pixels = rng.integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    for number, image in enumerate(pixels):
        save_png(place / "data" / f"{number}.png", image)
    checkpoints.save_model(place / "model", params, config, statistics.compute_statistics([pixels]))
    return place


def evaluate(model, workdir, **options):
    few = SamplerOptions(speed_up=250.0, corrector="none")
    checkpoint = str(model / "model")
    return evaluation_job.evaluate(RunOptions("eval", workdir, checkpoint=checkpoint, sampler=few, **options))


def test_too_few_samples_for_an_fid_need_the_flag(model, tmp_path, weights_file):
    with pytest.raises(PdsError, match="4 images are fewer than the 50000.*--allow_fewer"):
        evaluate(model, tmp_path, inception_weights=str(weights_file))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_fid_and_inception_score_of_samples(model, tmp_path, weights_file):
    row = evaluate(model, tmp_path, inception_weights=str(weights_file), allow_fewer=True)[0]
    judge = get_extractor("inception", weights=weights_file)
    samples = open_images(tmp_path / "eval" / "ckpt_model" / "samples").images(range(4))
    real = open_images(model / "data").images(range(6))
    expected = frechet_distance_from_features(np.asarray(judge(samples)), np.asarray(judge(real)))
    assert row["fid"] == pytest.approx(expected, rel=1e-3)
    assert 1 <= row["is"] <= 4 and row["n"] == 4 and row["reference_n"] == 6
