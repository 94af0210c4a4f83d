"""The reference implementation itself, on the same images and the same weights, where it can be installed."""

import numpy as np
import pytest
from PIL import Image

from pds_jax.metrics.evaluation import evaluate, make_reference
from pds_jax.metrics.extractors import get_extractor
from pds_jax.metrics.image_sets import open_images


def images(count, shift, seed):
    """Smooth random colour fields of 24x24 pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 180, (count, 6, 6, 3)) + shift
    return np.clip(np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def torch_fidelity():
    try:
        import torch_fidelity
    except Exception as error:  # it imports torchvision, which raises many kinds when it does not fit torch
        pytest.skip(f"torch-fidelity does not import here: {type(error).__name__}: {error}")
    return torch_fidelity


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_every_figure_of_torch_fidelity(torch_fidelity, state_dict, weights_file, tmp_path):
    import torch

    torch.save({name: torch.from_numpy(value) for name, value in state_dict.items()}, tmp_path / "weights.pth")
    for name, pixels in (("fake", images(16, 60, 0)), ("real", images(14, 0, 1))):
        (tmp_path / name).mkdir()
        for seed, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / name / f"{seed:06d}.png")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "fake"),
        input2=str(tmp_path / "real"),
        cuda=False,
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(tmp_path / "weights.pth"),
        isc_splits=10,
        kid_subset_size=10,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    extractor = get_extractor("inception", weights=weights_file)
    reference = make_reference(open_images(tmp_path / "real"), extractor, keep_features=True, batch_size=8)
    ours = evaluate(
        open_images(tmp_path / "fake"),
        reference,
        extractor,
        metrics=("fid", "kid", "is", "pr"),
        allow_fewer=True,
        subset_size=10,
        batch_size=8,
    )
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["kid_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
    assert ours["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["is_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-4)
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
