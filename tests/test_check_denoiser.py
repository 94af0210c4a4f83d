"""scripts/check_denoiser.py on networks that denoise and networks that do not; the figure on an exact score."""

import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from load_script import load
from ml_collections import ConfigDict

from pds_jax import adapters, checkpoints, denoisers
from pds_jax.convert import adm
from pds_jax.models import create_model, init_model
from pds_jax.ops import batch_mul
from pds_jax.sde_lib import VESDE, VPSDE
from pds_jax.types import PdsError

ROOT = pathlib.Path(__file__).parent.parent
script = load("check_denoiser")


@pytest.mark.parametrize("sde", [VESDE(0.01, 50, 10), VPSDE(0.1, 20, 10)], ids=["ve", "vp"])
def test_the_error_of_an_exact_denoiser_is_the_closed_form(sde):
    """For N(0, P) the posterior variance is P σ²/(P + σ²), a share P/(P + σ²) of the noise's power."""
    power = 0.25
    score = adapters.from_denoiser(lambda x, s: batch_mul(power / (power + jnp.square(s)), x), sde)
    x = np.random.default_rng(0).normal(size=(64, 16, 16, 3)).astype(np.float32) * np.sqrt(power)
    levels = np.asarray([0.1, 0.5, 2.0])
    found = denoisers.denoising_errors(score, sde, x, levels)
    np.testing.assert_allclose(found, power / (power + levels**2), rtol=0.02)
    with pytest.raises(PdsError, match="noise levels"):
        denoisers.denoising_errors(score, sde, x, [1e6])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"new": [0.3, 0.1], "legacy": [0.5, 0.2]}, "it denoises"),
        ({"new": [0.5, 0.2], "legacy": [0.3, 0.1]}, "wrong attention order: 'legacy'"),
        ({"new": [0.3, 0.1], "legacy": [0.299, 0.1]}, "it denoises"),
        ({None: [2.0, 0.1]}, "does not denoise"),
    ],
)
def test_verdicts(found, message):
    assert message in script.verdict({order: np.asarray(values) for order, values in found.items()})


@pytest.fixture
def flags_of(monkeypatch):
    """Sets flags of the script: name -> value."""

    def set_flags(**values):
        for name, value in values.items():
            monkeypatch.setattr(script, f"_{name.upper()}", types.SimpleNamespace(value=value))

    set_flags(images="x", resize=False, count=16, range=None, label=None, checkpoint="x", config=None)
    return set_flags


def test_images_are_read_in_the_range_that_the_model_declares(tmp_path, flags_of):
    unit = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)) / 255
    np.save(tmp_path / "wide.npy", (unit * 8 - 3).astype(np.float32))
    flags_of(images=str(tmp_path / "wide.npy"))

    def network(**data):
        return types.SimpleNamespace(shape=(8, 8, 3), config=ConfigDict({"data": {"centered": True, **data}}))

    declared = script.pixels(network(range=(-3.0, 5.0)))
    np.testing.assert_allclose(declared, unit * 2 - 1, atol=1e-5)
    with pytest.raises(PdsError, match=r"holds values from .*--range=lo,hi of the scripts"):
        script.pixels(network())
    flags_of(range=["-3", "5"])
    np.testing.assert_array_equal(script.pixels(network()), declared)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("levels", [["0", "1"], ["-1"], ["nan"], ["inf"], []])
def test_a_level_that_is_no_noise_is_refused_before_anything_is_read(flags_of, levels):
    flags_of(levels=levels)
    with pytest.raises(PdsError, match=f"--levels={','.join(levels)}: use noise levels above 0"):
        script.main(["check_denoiser"])


SETTINGS = {
    "image_size": 8, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1, "attention_resolutions": [1],
    "channel_mult": [1], "num_heads": 4, "use_scale_shift_norm": True, "use_new_attention_order": True,
}  # fmt: skip


def two_colours(key, count):
    """Images of two colours with a boundary at a random column, in [−1, 1]."""
    keys = jax.random.split(key, 3)
    a, b = (jax.random.uniform(k, (count, 1, 1, 3), minval=-1, maxval=1) for k in keys[:2])
    edge = jax.random.randint(keys[2], (count, 1, 1, 1), 1, 8)
    return jnp.broadcast_to(jnp.where(jnp.arange(8)[None, None, :, None] < edge, a, b), (count, 8, 8, 3))


def trained(config, steps):
    """Parameters after a short training on noise prediction."""
    model, params = create_model(config), init_model(jax.random.key(0), config)
    alpha_bar = jnp.asarray(np.cumprod(1 - adapters.ddpm_betas("linear")), jnp.float32)
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(params, state, key):
        keys = jax.random.split(key, 3)
        x, k = two_colours(keys[0], 32), jax.random.randint(keys[1], (32,), 0, 1000)
        noise = jax.random.normal(keys[2], x.shape)
        noised = batch_mul(jnp.sqrt(alpha_bar[k]), x) + batch_mul(jnp.sqrt(1 - alpha_bar[k]), noise)

        def loss(params):
            out = model.apply({"params": params}, noised, k.astype(jnp.float32), train=False)
            return jnp.mean(jnp.square(out[..., :3] - noise))

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # for optax
        state = optimizer.init(params)
        for number in range(steps):
            params, state = step(params, state, jax.random.key(number))
    return params


@pytest.mark.slow
def test_the_command_judges_a_snapshot(tmp_path, golden):
    """The recorded network was never trained."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8))
    words = [f"--checkpoint={golden / 'edm' / 'edm_ncsnpp_uncond.pkl'}", f"--images={tmp_path / 'images.npy'}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "check_denoiser.py"), *words, "--levels=0.1,1"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["verdict"].startswith("it does not denoise") and len(said["rows"]) == 1


@pytest.mark.slow
def test_a_wrong_attention_order_is_found(tmp_path):
    config = adm.config_from_settings(SETTINGS)
    checkpoints.save_model(tmp_path / "right", trained(config, 150), config)
    x = two_colours(jax.random.key(99), 32)
    found = {}
    for order in ("legacy", "new"):
        config.model.attention_order = order
        loaded = checkpoints.load_any(tmp_path / "right", config)
        score = denoisers.get_score(config, VPSDE(0.1, 20, 1000), create_model(config), loaded.params)
        found[order] = denoisers.denoising_errors(score, VPSDE(0.1, 20, 1000), x, [0.1, 0.3, 1.0])
    assert script.verdict(found) == "wrong attention order: 'new' denoises better than the configuration's 'legacy'"
