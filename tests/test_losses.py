import flax.serialization
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from pds_jax import losses, train_state
from pds_jax.io.files import read_json
from pds_jax.models import create_model
from pds_jax.score_fn import get_score_fn, wiener_scales
from pds_jax.sde_lib import VESDE, VPSDE, get_sde, subVPSDE
from pds_jax.types import PdsError

SDES = {"vesde": VESDE(), "vpsde": VPSDE(), "subvpsde": subVPSDE()}


@pytest.fixture(scope="module")
def recorded(golden):
    return dict(np.load(golden / "score_sde/sde/losses.npz"))


def gaussian_score(sde, recorded):
    def score(x, t):
        a, std = sde.mean_scale(t)[:, None, None, None], sde.std(t)[:, None, None, None]
        return -(x - a * recorded["m"][None]) / (a**2 * recorded["s2"] + std**2)

    return score


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("reduce_mean", [False, True])
@pytest.mark.parametrize("likelihood_weighting", [False, True])
def test_score_matching_loss_is_the_recorded_one(recorded, name, reduce_mean, likelihood_weighting):
    loss = losses.sde_loss(
        SDES[name],
        gaussian_score(SDES[name], recorded),
        jnp.asarray(recorded["data"]),
        jnp.asarray(recorded[f"sde.{name}.t"]),
        jnp.asarray(recorded[f"sde.{name}.z"]),
        reduce_mean=reduce_mean,
        likelihood_weighting=likelihood_weighting,
    )
    expected = recorded[f"sde.{name}.reduce_mean{int(reduce_mean)}.lw{int(likelihood_weighting)}.loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize("reduce_mean", [False, True])
def test_smld_loss_is_the_recorded_one(recorded, reduce_mean):
    sde = VESDE()

    def model_fn(x, labels):
        sigma = jnp.asarray(sde.discrete_sigmas)[999 - labels][:, None, None, None]
        return -(x - recorded["m"][None]) / (recorded["s2"] + sigma**2)

    data, labels, z = (jnp.asarray(recorded[k]) for k in ("data", "smld.labels", "smld.z"))
    loss = losses.smld_loss(sde, model_fn, data, labels, z, reduce_mean=reduce_mean)
    np.testing.assert_allclose(loss, recorded[f"smld.reduce_mean{int(reduce_mean)}.loss"], rtol=1e-4)


@pytest.mark.parametrize("reduce_mean", [False, True])
def test_ddpm_loss_is_the_recorded_one(recorded, reduce_mean):
    sde = VPSDE()

    def model_fn(x, labels):
        a = jnp.asarray(sde.sqrt_alphas_cumprod)[labels][:, None, None, None]
        std = jnp.asarray(sde.sqrt_1m_alphas_cumprod)[labels][:, None, None, None]
        return std * (x - a * recorded["m"][None]) / (a**2 * recorded["s2"] + std**2)

    data, labels, z = (jnp.asarray(recorded[k]) for k in ("data", "ddpm.labels", "ddpm.z"))
    loss = losses.ddpm_loss(sde, model_fn, data, labels, z, reduce_mean=reduce_mean)
    np.testing.assert_allclose(loss, recorded[f"ddpm.reduce_mean{int(reduce_mean)}.loss"], rtol=1e-4)


def test_unit_weight_makes_the_loss_a_regression_on_the_denoiser():
    sde, rng = VPSDE(), np.random.default_rng(0)
    x0, z = (jnp.asarray(rng.standard_normal((3, 4, 4, 1)), jnp.float32) for _ in range(2))
    t = jnp.asarray([0.1, 0.5, 0.9], jnp.float32)
    power = jnp.asarray(rng.uniform(0.1, 1.0, (4, 3, 1)), jnp.float32)
    score = -0.3 * x0  # any score

    loss = losses.sde_loss(
        sde,
        lambda x, t: score,
        x0,
        t,
        z,
        reduce_mean=True,
        likelihood_weighting=False,
        weight=losses.unit_weight(sde, lambda level: wiener_scales(power, level, 4)[1]),
    )
    m, std = (np.asarray(f(t), np.float64)[:, None, None, None] for f in (sde.mean_scale, sde.std))
    denoised = (m * np.asarray(x0) + std * np.asarray(z) + std**2 * np.asarray(score)) / m
    _, tau = wiener_scales(power, jnp.asarray((std / m)[:, 0, 0, 0], jnp.float32), 4)
    expected = np.mean(np.mean((denoised - np.asarray(x0)) ** 2, axis=(1, 2, 3)) / np.asarray(tau) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_two_weightings_are_refused(recorded):
    with pytest.raises(PdsError, match="not both"):
        losses.sde_loss(
            SDES["vesde"],
            None,
            None,
            None,
            None,
            reduce_mean=True,
            likelihood_weighting=True,
            weight=lambda t: t,
        )


@pytest.mark.parametrize("get, sde", [(losses.get_smld_loss_fn, VPSDE()), (losses.get_ddpm_loss_fn, VESDE())])
def test_a_discrete_loss_refuses_another_sde(get, sde):
    with pytest.raises(PdsError, match="needs the V"):
        get(sde, None, train=True)


class Echo:
    """A network that answers with a multiple of its input."""

    centered = False

    def apply(self, variables, x, labels, train, rngs):
        assert train and jax.numpy.issubdtype(rngs["dropout"].dtype, jax.dtypes.prng_key)
        return variables["params"] * x


@pytest.mark.parametrize(
    "loss_fn",
    [
        losses.get_sde_loss_fn(VESDE(), Echo(), train=True, likelihood_weighting=False),
        losses.get_smld_loss_fn(VESDE(), Echo(), train=True),
        losses.get_ddpm_loss_fn(VPSDE(), Echo(), train=True),
    ],
    ids=["sde", "smld", "ddpm"],
)
def test_draws_belong_to_the_image_not_to_its_place(loss_fn):
    keys, batch = jax.random.split(jax.random.key(0), 4), np.random.default_rng(0).random((4, 4, 4, 1), np.float32)
    params, loss_fn, order = jnp.float32(0.01), jax.jit(loss_fn), np.array([2, 0, 3, 1])
    loss = loss_fn(keys, params, batch)
    np.testing.assert_allclose(loss, loss_fn(keys[order], params, batch[order]), rtol=1e-5)
    assert abs(float(loss_fn(keys, params, batch[order])) - float(loss)) > 1e-5 * float(loss)


# --- the recorded training step of the original program --------------------------------------------------------


@pytest.fixture(scope="module")
def original(golden):
    folder = golden / "score_sde/train"
    state = flax.serialization.msgpack_restore((folder / "checkpoint_1").read_bytes())
    grads = flax.serialization.msgpack_restore((folder / "grads_step_3.msgpack").read_bytes())
    return (
        state,
        grads,
        dict(np.load(folder / "train_step.npz")),
        ml_collections.ConfigDict(read_json(folder / "config.json")),
    )


def same_shapes(tree, params):
    return jax.tree.map(lambda leaf, like: jnp.asarray(np.asarray(leaf).reshape(like.shape)), tree, params)


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def shapes(original):
    config = original[3]
    return jax.eval_shape(
        lambda: create_model(config).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.ones((1,)), train=False)
    )["params"]


@pytest.mark.slow
def test_loss_and_gradients_are_the_recorded_ones(original, shapes):
    state, golden_grads, step, config = original
    model, (sde, _) = create_model(config), get_sde(config)
    params = same_shapes(state["optimizer"]["target"], shapes)
    x, t, z = (jnp.asarray(step[k]) for k in ("image_step_3", "t_step_3", "z_step_3"))

    def loss_fn(params):
        score = get_score_fn(sde, model, params, continuous=True)
        return losses.sde_loss(sde, score, x, t, z, reduce_mean=False, likelihood_weighting=False)

    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params)
    np.testing.assert_allclose(loss, step["loss_step_3"], rtol=1e-5)
    np.testing.assert_allclose(optax.global_norm(grads), step["grad_norm_before_clip"], rtol=1e-4)
    expected = leaves(same_shapes(golden_grads, shapes))
    for name, grad in leaves(grads).items():
        assert np.abs(grad - expected[name]).max() <= 1e-4 * max(np.abs(expected[name]).max(), 1e-3), name


@pytest.mark.slow
def test_the_optimiser_goes_on_from_the_recorded_state(original, shapes):
    """Adam and the moving average after the recorded gradients, by the original's formulas in float64."""
    state, golden_grads, step, config = original
    moments = state["optimizer"]["state"]["param_states"]
    pick = lambda name: same_shapes(  # noqa: E731
        jax.tree.map(lambda leaf: leaf[name], moments, is_leaf=lambda leaf: "grad_ema" in leaf), shapes
    )
    optimizer = train_state.get_optimizer(config)
    before = train_state.create_train_state(same_shapes(state["optimizer"]["target"], shapes), optimizer)
    clip, _, rate = before.opt_state
    adam = optax.ScaleByAdamState(jnp.int32(3), pick("grad_ema"), pick("grad_sq_ema"))
    before = before.replace(
        step=jnp.int32(3),
        ema_params=same_shapes(state["params_ema"], shapes),
        opt_state=(clip, adam, rate._replace(count=jnp.int32(3))),
    )
    after = jax.jit(lambda s, g: train_state.apply_gradients(s, g, optimizer, ema_rate=0.999))(
        before, same_shapes(golden_grads, shapes)
    )
    check_update(before, after, golden_grads, step, config, shapes)


def check_update(before, after, golden_grads, step, config, shapes):
    """Adam and the moving average by their formulas in float64."""
    grads = leaves(same_shapes(golden_grads, shapes))
    scale = min(1.0, config.optim.grad_clip / float(step["grad_norm_before_clip"]))
    old, new, ema, new_ema = (leaves(t) for t in (before.params, after.params, before.ema_params, after.ema_params))
    first, second = leaves(before.opt_state[1].mu), leaves(before.opt_state[1].nu)
    for name, grad in grads.items():
        g = grad.astype(np.float64) * scale
        m, v = 0.9 * first[name] + 0.1 * g, 0.999 * second[name] + 0.001 * g**2
        update = (m / (1 - 0.9**4)) / (np.sqrt(v / (1 - 0.999**4)) + 1e-8)
        expected = old[name] - float(step["lr_used"]) * update
        np.testing.assert_allclose(new[name], expected, rtol=2e-6, atol=2e-7, err_msg=name)
        np.testing.assert_allclose(new_ema[name], 0.999 * ema[name] + 0.001 * new[name], rtol=2e-6, atol=1e-7)
    fourier = "['GaussianFourierProjection_0']['W']"
    np.testing.assert_array_equal(new[fourier], old[fourier])
