"""SDEs, predictors and correctors of a user's own work everywhere, without an edit of the package."""

import pathlib
import subprocess
import sys

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pds_jax
from pds_jax import likelihood, losses, preconditioner, sampling, sde_lib
from pds_jax.models.analytic import PixelGaussian
from pds_jax.ops import batch_mul
from pds_jax.plugins import load_plugin
from pds_jax.predictors import PREDICTORS, register_predictor
from pds_jax.solvers import linear
from pds_jax.types import PdsError

SHAPE = (4, 4, 1)
PLUGIN = pathlib.Path(__file__).parent / "plugins" / "my_parts.py"
load_plugin(PLUGIN)


@flax.struct.dataclass
class Decorated(sde_lib.SDE):
    """The same as the plugin's cosine SDE, as a flax dataclass."""

    angle: float = 1.5
    N: int = 1000

    def sde(self, x, t):
        beta = 2 * self.angle * jnp.tan(self.angle * t)
        return batch_mul(-0.5 * beta, x), jnp.sqrt(beta)

    def mean_scale(self, t):
        return jnp.cos(self.angle * t)

    def std(self, t):
        return jnp.sin(self.angle * t)


def cosine(N=60):  # noqa: N803
    return sde_lib.SDES["cosine"](N=N)


def law(sde):
    return PixelGaussian.create(sde, np.full(SHAPE, 0.3, np.float32), np.full(SHAPE, 0.25, np.float32))


@pytest.mark.parametrize(
    "make",
    [
        cosine,
        *(
            pytest.param(make, marks=pytest.mark.slow)
            for make in (lambda: Decorated(N=60), lambda: sde_lib.SDES["subvesde"](0.01, 5.0, 60))
        ),
    ],
)
def test_an_sde_of_ones_own_is_sampled_to_the_law_of_the_data(make):
    sde = make()
    m = preconditioner.from_radius(SHAPE, 1.0, 1.1)
    for predictor, M in (("euler_maruyama", None), ("reverse_diffusion", m), ("dpmpp_2m", None)):
        options = {"preconditioner": M, "variant": "exact"} if M is not None else {}
        sampler = sampling.get_pc_sampler(sde, SHAPE, predictor, "none", eps=1e-3, **options)
        x = sampling.run(sampler, sampling.image_keys(range(500)), law(sde)).x
        assert abs(np.mean(x) - 0.3) < 0.08 and abs(np.std(x) / 0.5 - 1) < 0.12, predictor


def test_another_value_of_its_numbers_compiles_nothing():
    traced = []

    @jax.jit
    def std(sde, t):
        traced.append(1)
        return sde.std(t)

    t = jnp.array([0.5])
    first, second = std(cosine(), t), std(sde_lib.SDES["cosine"](1.4, 20), t)
    assert len(traced) == 1 and float(first[0]) != float(second[0])
    assert int(cosine().with_num_scales(7).N) == 7


def test_its_likelihood_is_the_density_of_the_gaussian():
    sde = sde_lib.SDES["cosine"](1.56)
    zero = PixelGaussian.create(sde, np.zeros(SHAPE, np.float32), np.full(SHAPE, 0.25, np.float32))
    data = np.random.default_rng(0).normal(0, 0.5, (2, *SHAPE)).astype(np.float32)
    bpd, _, _ = likelihood.get_likelihood_fn(sde, lambda x: x, eps=1e-4)(jax.random.key(0), zero, data)
    density = np.square(data / 0.5).mean((1, 2, 3)) / 2 + np.log(2 * np.pi * 0.25) / 2
    np.testing.assert_allclose(bpd, density / np.log(2) + 8, atol=5e-3)


def test_a_loss_of_it_has_a_gradient():
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, label, train=False):
            return nn.Conv(1, (3, 3))(x) * jnp.cos(label / 999)[:, None, None, None]

    net, x = Net(), jnp.ones((2, *SHAPE))
    params = net.init(jax.random.key(0), x, jnp.ones(2))["params"]
    loss_fn = losses.get_sde_loss_fn(cosine(), net, train=True, eps=1e-3)
    keys = jax.random.split(jax.random.key(1), 2)
    value, grad = jax.value_and_grad(loss_fn, argnums=1)(keys, params, x)
    assert np.isfinite(value) and all(np.abs(g).max() > 0 for g in jax.tree.leaves(grad))


def test_options_reach_the_steps_that_take_them_and_no_other():
    sde, keys = sde_lib.VESDE(0.01, 5.0, 20), sampling.image_keys(range(3))

    def draw(**options):
        sampler = sampling.get_pc_sampler(sde, SHAPE, "half_noise", "small_step", snr=0.1, eps=1e-3, **options)
        return np.asarray(sampling.run(sampler, keys, law(sde)).x)

    assert np.abs(draw(amount=0.5) - draw()).max() == 0
    assert np.abs(draw(amount=0.9) - draw()).max() > 1e-2
    for options, name in (({"variant": "exact"}, "variant"), ({"strength": 2.0}, "strength")):
        with pytest.raises(PdsError, match=f"'half_noise' has no {name} option; it takes amount"):
            draw(**options)
    with pytest.raises(PdsError, match="did you mean half_noise"):
        sampling.get_pc_sampler(sde, SHAPE, "half_nose")


def test_it_can_be_named_in_a_plan():
    trained = pds_jax.load("digits")
    plan = pds_jax.plan(trained, nfe=12, predictor="half_noise", corrector="small_step")
    assert plan.nfe == 12 and plan.sampler.table.name_of("corrector") == "small_step"
    drawn = pds_jax.draw(trained, plan, seeds=range(2))
    assert np.isfinite(drawn.images).all()


def test_it_can_be_named_in_the_lab():
    from pds_jax.bench import lab

    method = lab.get_method("half_noise")
    assert (method.predictor, method.grid) == ("half_noise", "uniform") and method.iterations(30) == 30
    with pytest.raises(PdsError, match="unknown method 'quarter_noise'; known: .*half_noise"):
        lab.get_method("quarter_noise")


@pytest.mark.slow
def test_an_sde_of_ones_own_is_trained_and_sampled_from_the_command_line(tmp_path):
    root = PLUGIN.parents[2]
    program = [sys.executable, "-m", "pds_jax.main", f"--plugin={PLUGIN}", f"--workdir={tmp_path}/run"]
    train = ["--mode=train", "--config=configs/photos.py:runlocal,parametrisation=score_sde,loss_weighting=sigma",
             "--config.training.sde=cosine"]  # fmt: skip
    sample = ["--mode=sample", "--seeds=0-1", "--nfe=20", "--alpha=5", "--predictor=half_noise", "--corrector=none"]
    for words in (train, sample):
        done = subprocess.run([*program, *words], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("fn", "traits", "message"),
    [
        (lambda x, t, z, sde, score_fn: (x, x), {}, r"write fn\(x, t, z, \*, ...\)"),
        (lambda x, t, z, *, score: (x, x), {}, "keyword score is no input.*did you mean score_fn"),
        (lambda x, t, z, *, blob: (x, x), {}, "keyword blob is no input.*the inputs are sde"),
        (lambda x, t, z, *, memory: (x, x, memory), {}, "register it with init_memory="),
        (lambda x, t, z: (x, x), {"second": lambda x, t: (x, x)}, r"write fn\(x, t, z"),
    ],
)
def test_a_function_that_is_no_step_is_refused_when_it_is_registered(fn, traits, message):
    with pytest.raises(PdsError, match=f"predictor 'no_step'.*{message}"):
        register_predictor("no_step", **traits)(fn)
    assert "no_step" not in PREDICTORS


def one_result(x, t, z, *, score_fn, t_next):
    return x


def no_memory(x, t, z, *, score_fn, t_next, memory):
    return x, x


def score_elsewhere(x, t, z, *, score_fn, t_next):
    return x, x + score_fn(x + score_fn(x, t), t_next)


def weights_of_one(rows):
    return lambda sde, times, options: np.ones((rows, 6))


@pytest.mark.parametrize(
    ("fn", "traits", "message"),
    [
        (one_result, {}, r"returned one result: return \(x, x_mean\)"),
        (no_memory, {"init_memory": jnp.zeros_like}, r"returned 2 results: return \(x, x_mean, memory\)"),
        (score_elsewhere, {}, r"second=\)"),
        (linear.on_noise, {"init_memory": linear.keeps(2)}, "keeps 2 outputs, but the rows have no weights"),
        (
            linear.on_noise,
            {"init_memory": linear.keeps(2), "coefficients": weights_of_one(4)},
            "for 1 outputs",
        ),
        (
            linear.on_noise,
            {"init_memory": linear.keeps(1), "coefficients": weights_of_one(3)},
            r"\(3, 6\) for 4",
        ),
    ],
)
def test_what_a_step_does_wrong_is_said_by_name(fn, traits, message):
    register_predictor("wrong", draws=0, **traits)(fn)
    sde = sde_lib.VESDE(0.01, 5.0, 4)
    try:
        with pytest.raises(PdsError, match=message):
            sampling.get_pc_sampler(sde, SHAPE, "wrong", "none")(sampling.image_keys([0]), law(sde))
    finally:
        PREDICTORS.pop("wrong")


def test_a_second_stage_is_a_function():
    """A predictor whose second stage undoes the first leaves x, but for the step to the data."""

    def back(x, t, z, *, memory):
        return memory, memory, memory

    @register_predictor("there_and_back", draws=0, second=back, init_memory=jnp.zeros_like)
    def there(x, t, z, *, t_next, memory):
        return 2 * x, 2 * x, x

    sde = sde_lib.VESDE(0.01, 5.0, 4)
    sampler = sampling.get_pc_sampler(sde, SHAPE, "there_and_back", "none")
    x, nfe = sampler(sampling.image_keys([0]), law(sde))
    PREDICTORS.pop("there_and_back")
    assert int(nfe) == 7 and sampler.table.kinds[1].name == "there_and_back_second"
    np.testing.assert_allclose(x, 2 * sampler.init(sampling.image_keys([0])).x)
