import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from pds_jax import train_state
from pds_jax.types import PdsError


def config(**optim):
    base = dict(optimizer="Adam", lr=1e-2, beta1=0.9, eps=1e-8, warmup=0, grad_clip=-1.0, weight_decay=0.0)
    return ml_collections.ConfigDict({"optim": {**base, **optim}, "training": {"n_iters": 100}})


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    rate = train_state.learning_rate(config(warmup=10, cosine_steps=20))
    values = [float(rate(jnp.int32(n))) for n in (0, 5, 10, 80, 90, 100, 200)]
    np.testing.assert_allclose(values, [0.0, 5e-3, 1e-2, 1e-2, 5e-3, 0.0, 0.0], atol=1e-9)


def test_a_short_run_reaches_the_whole_rate_before_it_falls():
    rate = train_state.learning_rate(config(warmup=20, cosine_steps=4000))
    values = [float(rate(jnp.int32(n))) for n in (10, 20, 60, 100)]
    np.testing.assert_allclose(values, [5e-3, 1e-2, 5e-3, 0.0], atol=1e-9)
    without = train_state.learning_rate(config(warmup=200, cosine_steps=4000))  # the warm-up lasts to the end
    np.testing.assert_allclose(float(without(jnp.int32(100))), 5e-3, rtol=1e-6)


def test_the_average_forgets_the_initial_weights():
    """After n steps with warm-up the initial weights keep Π (1+k)/(10+k), far less than rate^n."""
    kept = 1.0
    for n in range(100):
        kept *= float(train_state.ema_decay(0.999, jnp.int32(n), True))
    assert kept < 1e-9
    assert float(train_state.ema_decay(0.999, jnp.int32(10**6), True)) == pytest.approx(0.999)
    assert float(train_state.ema_decay(0.999, jnp.int32(0), False)) == pytest.approx(0.999)


def test_gradients_are_clipped_by_their_global_norm_and_the_average_moves():
    optimizer = train_state.get_optimizer(config(grad_clip=1.0))
    state = train_state.create_train_state({"w": jnp.zeros(2)}, optimizer)
    small = train_state.apply_gradients(state, {"w": jnp.asarray([0.6, 0.8])}, optimizer, ema_rate=0.9)
    large = train_state.apply_gradients(state, {"w": jnp.asarray([600.0, 800.0])}, optimizer, ema_rate=0.9)
    np.testing.assert_allclose(small.opt_state[1].mu["w"], large.opt_state[1].mu["w"], rtol=1e-6)
    np.testing.assert_allclose(small.ema_params["w"], 0.1 * small.params["w"], rtol=1e-5)
    assert int(small.step) == 1


def test_weight_decay_does_not_pass_through_adam():
    """A frozen weight, whose gradient is 0, decays by lr wd w a step, as in flax, and not by lr."""
    optimizer = train_state.get_optimizer(config(weight_decay=0.01))
    state = train_state.create_train_state({"W": jnp.full((3,), 16.0)}, optimizer)
    after = train_state.apply_gradients(state, {"W": jnp.zeros(3)}, optimizer, ema_rate=0.0)
    np.testing.assert_allclose(after.params["W"], 16.0 * (1 - 1e-2 * 0.01), rtol=1e-6)


def test_state_goes_to_plain_dicts_and_back():
    optimizer = train_state.get_optimizer(config())
    state = train_state.create_train_state({"a": {"w": jnp.ones(3)}}, optimizer)
    state = train_state.apply_gradients(state, {"a": {"w": jnp.ones(3)}}, optimizer, ema_rate=0.5)
    tree = train_state.to_tree(state)
    assert all(isinstance(key, str) for key in tree["opt_state"])
    back = train_state.from_tree(train_state.create_train_state({"a": {"w": jnp.zeros(3)}}, optimizer), tree)
    jax.tree.map(np.testing.assert_array_equal, state, back)


def test_another_optimiser_is_refused():
    with pytest.raises(PdsError, match="unknown optim.optimizer 'SGD'; known: Adam"):
        train_state.get_optimizer(config(optimizer="SGD"))
