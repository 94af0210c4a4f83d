"""The state of a training, and the optimiser."""

from __future__ import annotations

from typing import Any

import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import optax

from pds_jax.types import Array, PdsError, unknown_name

Params = Any


@flax.struct.dataclass
class TrainState:
    """Everything that training needs to continue.

    There is no random state: every draw is a function of (seed, step, image).

    Attributes:
      step: () int32, steps done.
      params: the network's parameters.
      ema_params: their exponential moving average, what sampling uses.
      opt_state: state of the optimiser.
    """

    step: Array
    params: Params
    ema_params: Params
    opt_state: Any


def create_train_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step.

    Args:
      params: initial parameters.
      optimizer: see :func:`get_optimizer`.

    Returns:
      State at step 0; the average starts as the parameters themselves.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.array, params),
        opt_state=optimizer.init(params),
    )


def resumed_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    step: int,
    ema_params: Params,
    count: int,
    mu: Params,
    nu: Params,
) -> TrainState:
    """The state of a training that another program started.

    Args:
      params: raw parameters.
      optimizer: see :func:`get_optimizer`.
      step: steps done, which the learning rate follows.
      ema_params: their moving average.
      count: number of steps in Adam's moments.
      mu: Adam's average of the gradients, without bias correction.
      nu: Adam's average of their squares, without bias correction.

    Returns:
      State from which the next step is that of the other program.
    """
    arrays = [jax.tree.map(jnp.asarray, tree) for tree in (params, ema_params, mu, nu)]

    def put(node: Any) -> Any:
        if isinstance(node, optax.ScaleByAdamState):
            return node._replace(count=jnp.int32(count), mu=arrays[2], nu=arrays[3])
        return node._replace(count=jnp.int32(step)) if isinstance(node, optax.ScaleByScheduleState) else node

    state = create_train_state(arrays[0], optimizer)
    kinds = (optax.ScaleByAdamState, optax.ScaleByScheduleState)
    opt_state = jax.tree.map(put, state.opt_state, is_leaf=lambda node: isinstance(node, kinds))
    return TrainState(step=jnp.int32(step), params=arrays[0], ema_params=arrays[1], opt_state=opt_state)


def learning_rate(config: Any) -> optax.Schedule:
    """Learning rate after n steps.

    lr(n) = optim.lr · min(n / warmup, 1) · ½ (1 + cos π c), where c goes from 0 to 1 over the last
    min(cosine_steps, n_iters − warmup) of ``training.n_iters`` iterations, so that the decay of a short training
    begins after its warm-up (``optim.cosine_steps`` 0, the default: no decay, as in score_sde).

    Args:
      config: with optim and training.

    Returns:
      A function of the step.
    """
    optim = config.optim
    cosine_steps = min(int(optim.get("cosine_steps", 0)), config.training.n_iters - optim.warmup)
    start = config.training.n_iters - cosine_steps

    def schedule(step: Array) -> Array:
        rate = jnp.asarray(optim.lr, jnp.float32)
        n = jnp.asarray(step, jnp.float32)
        if optim.warmup > 0:
            rate = rate * jnp.minimum(n / optim.warmup, 1.0)
        if cosine_steps > 0:
            done = jnp.clip((n - start) / cosine_steps, 0.0, 1.0)
            rate = rate * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        return rate

    return schedule


def get_optimizer(config: Any) -> optax.GradientTransformation:
    """Adam with gradients clipped by their global norm and a learning rate that warms up, as score_sde's.

    Args:
      config: with optim.{optimizer, lr, beta1, eps, warmup, grad_clip, weight_decay} and training.n_iters.

    Returns:
      The optax transformation.

    Raises:
      PdsError: an optimiser other than Adam. Numbers are checked by ``train_config.check_fields``.
    """
    optim = config.optim
    if optim.optimizer != "Adam":
        raise PdsError(unknown_name("optim.optimizer", optim.optimizer, ["Adam"]))
    parts = []
    if optim.grad_clip >= 0:
        parts.append(optax.clip_by_global_norm(optim.grad_clip))
    parts.append(optax.scale_by_adam(b1=optim.beta1, b2=0.999, eps=optim.eps))
    if optim.weight_decay:  # after Adam, as in flax: before it, a frozen weight would decay by the whole rate
        parts.append(optax.add_decayed_weights(optim.weight_decay))
    parts.append(optax.scale_by_learning_rate(learning_rate(config)))
    return optax.chain(*parts)


def ema_decay(rate: float, step: Array, warmup: bool) -> Array:
    """Weight of the past in the moving average at a step.

    min(rate, (1 + n) / (10 + n)) with warm-up, so that a short training forgets its initial weights; else rate.

    Args:
      rate: model.ema_rate.
      step: () int32, steps done before this one.
      warmup: model.ema_warmup.

    Returns:
      () float32.
    """
    if not warmup:
        return jnp.asarray(rate, jnp.float32)
    n = jnp.asarray(step, jnp.float32)
    return jnp.minimum(rate, (1.0 + n) / (10.0 + n))


def apply_gradients(
    state: TrainState,
    grads: Params,
    optimizer: optax.GradientTransformation,
    *,
    ema_rate: float,
    ema_warmup: bool = False,
) -> TrainState:
    """One optimiser step and one step of the moving average, θ̄ ← d θ̄ + (1 − d) θ.

    Args:
      state: before.
      grads: gradient of the loss, averaged over devices.
      optimizer: see :func:`get_optimizer`.
      ema_rate: d.
      ema_warmup: see :func:`ema_decay`.

    Returns:
      The state after.
    """
    with jax.numpy_dtype_promotion("standard"):  # optax raises a decay to an integer power
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay(ema_rate, state.step, ema_warmup)
    ema_params = jax.tree.map(lambda old, new: old * decay + new * (1.0 - decay), state.ema_params, params)
    return TrainState(step=state.step + 1, params=params, ema_params=ema_params, opt_state=opt_state)


def to_tree(state: TrainState) -> dict[str, Any]:
    """The state as nested dicts of arrays, the form that is saved."""
    return flax.serialization.to_state_dict(state)


def from_tree(template: TrainState, tree: dict[str, Any]) -> TrainState:
    """Inverse of :func:`to_tree`; the template says which optimiser the state belongs to."""
    return flax.serialization.from_state_dict(template, tree)
