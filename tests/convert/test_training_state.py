"""Whole training states of score_sde and score_sde_pytorch: what the next step makes of them is what theirs made."""

import functools
import json

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from convert_cases import CHECKPOINT_1, TORCH, flax_config, need_torch, random_params, torch_config

from pds_jax import checkpoints, convert, train_state, training
from pds_jax.convert.names import FROZEN, torch_pairs
from pds_jax.convert.score_sde_torch import to_torch
from pds_jax.convert.tree import flatten, nest, template
from pds_jax.models import init_model
from pds_jax.types import PdsError

KEY_BIAS = "NIN_1/b"  # its gradient is zero, and Adam amplifies what rounding makes of that


def begun(state, optimizer):
    return train_state.resumed_state(
        state.params,
        optimizer,
        step=state.step,
        ema_params=state.ema_params,
        count=state.count,
        mu=state.mu,
        nu=state.nu,
    )


def adams_step(tree, grads, step, config):
    """θ, θ̄, m, v of flax.optim's Adam after one step, in float64; gradients clipped by their global norm."""
    p, ema, m, v = tree
    optim = config.optim
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in grads.values()))
    rate = optim.lr * min(step / optim.warmup, 1.0)
    after = {}
    for name, gradient in grads.items():
        g = gradient.astype(np.float64) * optim.grad_clip / max(norm, optim.grad_clip)
        m1, v1 = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g * g
        corrected = np.sqrt(v1 / (1 - 0.999 ** (step + 1))) + optim.eps
        p1 = p[name] - rate * (m1 / (1 - 0.9 ** (step + 1))) / corrected
        after[name] = (p1, config.model.ema_rate * ema[name] + (1 - config.model.ema_rate) * p1, m1, v1)
    return after


@pytest.mark.slow
def test_the_step_after_score_sdes_checkpoint_is_the_one_of_its_adam():
    config = flax_config()
    state = convert.load_training_state(CHECKPOINT_1, config)
    assert (state.step, state.count) == (3, 3)
    shapes = template(config)
    recorded = flatten(flax.serialization.msgpack_restore((CHECKPOINT_1.parent / "grads_step_3.msgpack").read_bytes()))
    grads = {name: recorded[name].reshape(shape) for name, shape in shapes.items()}
    optimizer = train_state.get_optimizer(config)
    after = train_state.apply_gradients(begun(state, optimizer), nest(grads), optimizer, ema_rate=config.model.ema_rate)
    assert int(after.step) == 4
    adam = next(node for node in after.opt_state if isinstance(node, optax.ScaleByAdamState))
    ours = [flatten(tree) for tree in (after.params, after.ema_params, adam.mu, adam.nu)]
    before = [flatten(tree) for tree in (state.params, state.ema_params, state.mu, state.nu)]
    expected = adams_step(before, grads, 3, config)
    for name in shapes:
        if KEY_BIAS in name:
            continue
        for found, old, wanted, tolerance in zip(ours, before, expected[name], (2e-3, 2e-3, 1e-5, 1e-5), strict=True):
            change = np.abs(wanted - old[name]).max()
            np.testing.assert_allclose(
                found[name], wanted, rtol=0, atol=tolerance * change + 1e-7 * np.abs(wanted).max()
            )
    np.testing.assert_array_equal(ours[0][FROZEN], before[0][FROZEN])


def as_score_sde(state):
    """A training state of ours in the layout of score_sde's checkpoint_N."""
    adam = next(node for node in state.opt_state if isinstance(node, optax.ScaleByAdamState))
    moments = {
        name: {"grad_ema": np.asarray(m), "grad_sq_ema": np.asarray(v)}
        for (name, m), v in zip(flatten(adam.mu).items(), flatten(adam.nu).values(), strict=True)
    }
    return {
        "step": np.asarray(state.step),
        "optimizer": {
            "target": jax.tree.map(np.asarray, state.params),
            "state": {"step": np.asarray(adam.count), "param_states": nest(moments)},
        },
        "lr": np.float32(1e-3),
        "model_state": {},
        "ema_rate": np.float32(0.999),
        "params_ema": jax.tree.map(np.asarray, state.ema_params),
        "rng": np.zeros(2, np.uint32),
    }


def as_flax_of_today(state):
    return {
        "step": int(state.step),
        "params": jax.tree.map(np.asarray, state.params),
        "ema_params": jax.tree.map(np.asarray, state.ema_params),
        "opt_state": flax.serialization.to_state_dict(jax.tree.map(np.asarray, state.opt_state)),
    }


def trained(workdir, steps, checkpoint=None):
    config = tiny.get_config()
    config.training.n_iters = steps
    training.train(config, str(workdir), checkpoint)
    folder = checkpoints.TrainingFolder(workdir / "checkpoints-meta", create=False)
    optimizer = train_state.get_optimizer(config)
    like = train_state.create_train_state(init_model(jax.random.key(0), config), optimizer)
    state = folder.restore(steps, like)
    folder.close()
    return state


@pytest.mark.parametrize("layout", [as_score_sde, pytest.param(as_flax_of_today, marks=pytest.mark.slow)])
def test_training_goes_on_from_a_state_as_if_it_had_never_stopped(tmp_path, layout):
    half, whole = trained(tmp_path / "half", 6), trained(tmp_path / "whole", 10)
    path = tmp_path / "checkpoint_1"
    path.write_bytes(flax.serialization.msgpack_serialize(layout(half)))
    after = trained(tmp_path / "after", 10, str(path))
    jax.tree.map(np.testing.assert_array_equal, after, whole)
    record = json.loads((tmp_path / "after" / "begun_from.json").read_text())
    assert record["step"] == 6 and record["checkpoint"] == str(path)
    jax.tree.map(np.testing.assert_array_equal, trained(tmp_path / "after", 10, None), whole)  # nothing is left to do
    with pytest.raises(PdsError, match="nothing left to do"):
        trained(tmp_path / "again", 6, str(path))
    with pytest.raises(PdsError, match="did not start from"):
        trained(tmp_path / "half", 10, str(path))
    assert not (tmp_path / "again").exists()


def test_a_training_taken_over_does_not_restart_from_random_weights(tmp_path):
    config, path = tiny.get_config(), tmp_path / "checkpoint_1"
    state = train_state.create_train_state(init_model(jax.random.key(7), config), train_state.get_optimizer(config))
    path.write_bytes(flax.serialization.msgpack_serialize(as_score_sde(state.replace(step=jnp.int32(6)))))
    workdir = str(tmp_path / "run")
    training.Trainer(config, workdir, str(path))  # killed before its first state
    with pytest.raises(PdsError, match=f"give --checkpoint={path} again"):
        training.Trainer(config, workdir)
    again = training.Trainer(config, workdir, str(path))
    assert int(again.state.step) == 6
    jax.tree.map(np.testing.assert_array_equal, again.state.params, state.params)


def test_a_folder_of_score_sde_is_not_begun_anew(tmp_path):
    (tmp_path / "checkpoints-meta").mkdir()
    (tmp_path / "checkpoints-meta" / "checkpoint_7").write_bytes(CHECKPOINT_1.read_bytes())
    with pytest.raises(PdsError, match="states of another program.*--checkpoint"):
        trained(tmp_path, 2)


@pytest.fixture
def official():
    return flax.serialization.msgpack_restore(CHECKPOINT_1.read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("step"), "after how many steps"),
        (lambda s: s.pop("params_ema"), "no moving average"),
        (lambda s: s["optimizer"].pop("state"), "no sets of Adam's moments"),
        (lambda s: s["optimizer"]["state"]["param_states"].pop("Dense_0"), "'.*Dense_0/.*/grad_ema' is missing"),
        (lambda s: s["optimizer"]["state"]["param_states"]["Dense_0"]["bias"].update(grad_ema=np.zeros(3)), "shape"),
    ],
)
def test_a_state_that_is_not_whole_is_refused(tmp_path, official, damage, message):
    damage(official)
    (tmp_path / "checkpoint_1").write_bytes(flax.serialization.msgpack_serialize(official))
    with pytest.raises(convert.ConversionError, match=message):
        convert.load_training_state(tmp_path / "checkpoint_1", flax_config())


def test_options_that_change_are_noted():
    config = flax_config()
    assert len(convert.load_training_state(CHECKPOINT_1, config).report.notes) == 1  # which weights are which
    config.optim.lr, config.model.ema_rate = 1e-3, 0.99
    notes = convert.load_training_state(CHECKPOINT_1, config).report.notes
    assert "it was trained with lr=0.0002; it goes on with the config's 0.001" in notes
    assert "it was trained with ema_rate=0.999; it goes on with the config's 0.99" in notes


def test_weights_without_an_optimiser_are_refused(tmp_path):
    config = flax_config()
    convert.export(random_params(config), config, tmp_path / "model")
    with pytest.raises(convert.ConversionError, match="without an optimiser's state"):
        convert.load_training_state(tmp_path / "model", config)


def test_the_state_of_score_sde_pytorch_keeps_its_moments_by_name():
    """Its optimiser counts the frozen frequencies, which have no moments."""
    torch, config = need_torch(), torch_config()
    state = convert.load_training_state(TORCH / "ncsnpp_ve.pth", config)
    original = torch.load(TORCH / "ncsnpp_ve.pth", weights_only=False)
    assert (state.step, state.count) == (2, 2)
    pairs = torch_pairs(config, template(config))
    names = [name.removeprefix("module.") for name in original["model"] if not name.endswith("sigmas")]
    for ours, theirs in ((state.mu, "exp_avg"), (state.nu, "exp_avg_sq")):
        found = to_torch(flatten(ours), pairs)
        for number, name in enumerate(names):
            entry = original["optimizer"]["state"].get(number)
            wanted = np.zeros_like(found[name]) if entry is None else entry[theirs].numpy()
            np.testing.assert_array_equal(found[name], wanted, err_msg=name)
    assert not np.any(flatten(state.mu)[FROZEN])


@pytest.mark.slow
def test_torchs_adam_and_ours_make_the_same_step():
    torch, config = need_torch(), torch_config()
    state = convert.load_training_state(TORCH / "ncsnpp_ve.pth", config)
    original = torch.load(TORCH / "ncsnpp_ve.pth", weights_only=False)
    pairs = torch_pairs(config, template(config))
    rng = np.random.default_rng(0)
    ours = {name: 1e-4 * rng.normal(size=shape).astype(np.float32) for name, shape in template(config).items()}
    ours[FROZEN] = np.zeros_like(ours[FROZEN])
    theirs = to_torch(ours, pairs)
    weights = {n.removeprefix("module."): v for n, v in original["model"].items() if not n.endswith("sigmas")}
    parameters = [torch.nn.Parameter(v, requires_grad=n != "all_modules.0.W") for n, v in weights.items()]
    adam = torch.optim.Adam(parameters, lr=config.optim.lr, betas=(config.optim.beta1, 0.999), eps=config.optim.eps)
    adam.load_state_dict(original["optimizer"])
    for name, parameter in zip(weights, parameters, strict=True):
        parameter.grad = torch.from_numpy(theirs[name]) if parameter.requires_grad else None
    for group in adam.param_groups:
        group["lr"] = config.optim.lr * min(state.step / config.optim.warmup, 1.0)
    adam.step()
    optimizer = train_state.get_optimizer(config)
    step = jax.jit(functools.partial(train_state.apply_gradients, optimizer=optimizer, ema_rate=0.999))
    after = step(begun(state, optimizer), nest(ours))
    before, found = to_torch(flatten(state.params), pairs), to_torch(flatten(after.params), pairs)
    for name, parameter in zip(weights, parameters, strict=True):
        wanted = parameter.detach().numpy()
        change = np.abs(wanted - before[name]).max()
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-3 * change + 1e-7 * np.abs(wanted).max())
    assert jnp.issubdtype(after.step.dtype, jnp.integer) and int(after.step) == 3


@pytest.mark.slow
def test_training_goes_on_in_the_folder_of_score_sde_itself(tmp_path):
    """Its checkpoint_N stay where they are, among the states of this package."""
    half = trained(tmp_path / "half", 2)
    meta = tmp_path / "theirs" / "checkpoints-meta"
    meta.mkdir(parents=True)
    (meta / "checkpoint_1").write_bytes(flax.serialization.msgpack_serialize(as_score_sde(half)))
    after = trained(tmp_path / "theirs", 4, str(meta / "checkpoint_1"))
    assert int(after.step) == 4 and (meta / "checkpoint_1").is_file()
    jax.tree.map(np.testing.assert_array_equal, trained(tmp_path / "theirs", 4), after)
