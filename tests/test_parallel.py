import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import controllable_generation, parallel, preconditioner, processes, sampling, statistics
from pds_jax.models.analytic import PixelGaussian
from pds_jax.sde_lib import VESDE
from pds_jax.types import PdsError

SHAPE = (8, 8, 1)
IMAGES = np.random.default_rng(0).uniform(size=(40, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def stats():
    return statistics.compute_statistics([IMAGES])


@pytest.fixture(scope="module")
def score_fn():
    sde = VESDE(0.01, 5.0, 20)
    return PixelGaussian.create(sde, np.full(SHAPE, 0.5, np.float32), np.full(SHAPE, 0.1, np.float32))


@functools.cache
def sampler(alpha=5.0, n=10, norm="sample", snr=0.1):
    m = preconditioner.from_statistics(statistics.compute_statistics([IMAGES]), alpha, "freq")
    return sampling.get_pc_sampler(VESDE(0.01, 5.0, n), SHAPE, snr=snr, preconditioner=m, norm=norm, check=False)


@pytest.fixture
def devices(monkeypatch):
    """Pretend to have fewer devices."""
    everything = jax.local_devices()

    def use(count):
        monkeypatch.setattr(jax, "local_device_count", lambda: count)
        monkeypatch.setattr(jax, "local_devices", lambda: everything[:count])

    return use


@pytest.mark.parametrize(
    "size, count",
    [(8, 2), (8, 4), (7, 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((8, 1), (7, 1), (7, 2)))],
)
def test_any_number_of_devices_gives_the_same_images(devices, score_fn, count, size):
    """The same arithmetic runs on slices of another length, whose vectorised sums may round differently: 1e-5."""
    keys = sampling.image_keys(range(size))
    expected = sampling.run(sampler(), keys, score_fn).x
    devices(count)
    found = parallel.sample(sampler(), keys, score_fn)
    assert found.x.shape == (size, *SHAPE) and found.nfe == 20
    np.testing.assert_allclose(found.x, expected, atol=1e-5)


def program_text(sampler, keys, score_fn):
    """The compiled program of one chunk, to look for communication in."""
    job = parallel._place(sampler, keys, score_fn)
    init, chunk, _ = parallel._programs(job.count, job.everywhere, job.own)
    carry = init(job.sampler, job.keys, None)
    return chunk.lower(job.sampler, carry, jnp.int32(1), job.score_fn).compile().as_text()


def test_the_program_of_sample_mode_never_communicates(score_fn):
    text = program_text(sampler(), sampling.image_keys(range(8)), score_fn)
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"):
        assert word not in text, word


def test_the_program_of_batch_mode_does_communicate(score_fn):
    """So that the test above could fail."""
    text = program_text(sampler(norm="batch"), sampling.image_keys(range(8)), score_fn)
    assert "all-reduce" in text


@pytest.mark.parametrize("size", [pytest.param(8, marks=pytest.mark.slow), 6])
def test_batch_mode_takes_the_mean_over_all_devices(devices, score_fn, size):
    keys = sampling.image_keys(range(size))
    expected = sampling.run(sampler(norm="batch"), keys, score_fn).x
    devices(4)
    np.testing.assert_allclose(parallel.sample(sampler(norm="batch"), keys, score_fn).x, expected, atol=1e-5)


def test_another_alpha_step_count_snr_and_seed_compile_nothing(score_fn):
    parallel.sample(sampler(), sampling.image_keys(range(8)), score_fn)
    others = sampler(3.0, 12, "sample", 0.2)
    with jax.log_compiles(), CompileCount() as count:
        parallel.sample(others, sampling.image_keys(range(100, 108)), score_fn)
    assert not [name for name in count.names if "run_chunk" in name or "lambda" in name], count.names


class CompileCount:
    """Names of what was compiled inside the block."""

    def __enter__(self):
        import logging

        self.names = []
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.names.append(record.getMessage())
        self.logger = logging.getLogger("jax")
        self.logger.addHandler(self.handler)
        return self

    def __exit__(self, *_):
        self.logger.removeHandler(self.handler)
        self.names = [name for name in self.names if name.startswith("Finished XLA compilation")]


def test_warm_up_compiles_what_sample_runs(score_fn):
    job = sampling.get_pc_sampler(VESDE(0.01, 5.0, 10), SHAPE, "euler_maruyama", "none")
    keys = sampling.image_keys(range(8))
    parallel.warm_up(job, keys, score_fn)
    with jax.log_compiles(), CompileCount() as count:
        parallel.sample(job, keys, score_fn)
    assert not count.names


def test_trajectories_come_in_image_order(score_fn):
    keys = sampling.image_keys(range(6))
    found = parallel.sample(sampler(), keys, score_fn, trajectory_every=5)
    assert [step for step, _, _ in found.trajectory] == [5, 10]
    np.testing.assert_array_equal(found.trajectory[-1][2], found.x)


def negative(x):
    return -x, jnp.sum(x, (1, 2, 3))


def test_what_devices_finish_comes_in_image_order_without_padding(score_fn):
    keys = sampling.image_keys(range(7))
    expected = parallel.sample(sampler(), keys, score_fn).x
    images, sums = parallel.sample(sampler(), keys, score_fn, finish=negative).x.fetch()
    np.testing.assert_array_equal(images, -expected)
    np.testing.assert_allclose(sums, expected.sum((1, 2, 3)), rtol=1e-5)


def test_weights_that_are_on_the_devices_stay_there():
    there = parallel._replicated({"w": jnp.full(SHAPE, 0.3)}, 4)
    again = parallel._replicated(there, 4)
    shards = [tree["w"].addressable_shards for tree in (there, again)]
    pointers = [[shard.data.unsafe_buffer_pointer() for shard in found] for found in shards]
    assert pointers[0] == pointers[1] and len(set(pointers[0])) == 4


def test_arrays_of_numpy_may_change_between_batches():
    keys, weights = sampling.image_keys(range(4)), np.full(SHAPE, 0.3, np.float32)
    score = jax.tree_util.Partial(lambda w, x, t: -x * w[None], weights)
    first = parallel.sample(sampler(), keys, score).x
    weights += 0.1
    assert np.abs(parallel.sample(sampler(), keys, score).x - first).max() > 1e-3


IMAGES_GIVEN = IMAGES[:6]


@pytest.mark.parametrize("name", [pytest.param("inpainting", marks=pytest.mark.slow), "super_resolution"])
def test_a_condition_is_padded_and_split_like_the_keys(score_fn, name):
    """Six images on four devices; every image gets its own measurement, not its neighbour's."""
    small = IMAGES_GIVEN.reshape(6, 4, 2, 4, 2, 1).mean((2, 4))
    condition = {
        "inpainting": lambda: controllable_generation.inpainting(IMAGES_GIVEN, np.eye(8)),
        "super_resolution": lambda: controllable_generation.super_resolution(small, 2),
    }[name]()
    keys = sampling.image_keys(range(6))
    job = sampling.get_pc_sampler(VESDE(0.01, 5.0, 10), SHAPE, "reverse_diffusion", "none")
    guided = controllable_generation.reconstruction_guidance(score_fn, VESDE(0.01, 5.0, 10), condition, steps=2)
    found = parallel.sample(job, keys, guided, condition=condition).x
    expected = sampling.run(job, keys, guided, condition=condition).x
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(condition.operator.forward(jnp.asarray(found)), condition.y, atol=1e-5)


def test_labels_are_split_like_the_keys(score_fn):
    def logits(x, sigma):
        return jnp.concatenate([jnp.sum(x, axis=(1, 2)), -jnp.sum(x, axis=(1, 2))], axis=-1)

    sde, keys = VESDE(0.01, 5.0, 10), sampling.image_keys(range(6))
    labels = np.array([0, 1, 0, 0, 1, 1])
    guided = controllable_generation.class_conditional(
        score_fn, sde, jax.tree_util.Partial(logits), labels, num_classes=2
    )
    job = sampling.get_pc_sampler(sde, SHAPE, "reverse_diffusion", "none")
    found = parallel.sample(job, keys, guided).x
    np.testing.assert_allclose(found, sampling.run(job, keys, guided).x, atol=2e-4)
    assert found[labels == 0].mean() > found[labels == 1].mean() + 0.01


def test_conditions_that_do_not_fit_are_refused(score_fn):
    condition = controllable_generation.inpainting(IMAGES_GIVEN, np.eye(8))
    with pytest.raises(PdsError, match="but there are 5 keys"):
        parallel.sample(sampler(), sampling.image_keys(range(5)), score_fn, condition=condition)
    adaptive = sampling.get_ode_sampler(VESDE(0.01, 5.0, 10), SHAPE)
    with pytest.raises(PdsError, match="adaptive ODE sampler takes no condition"):
        parallel.sample(adaptive, sampling.image_keys(range(6)), score_fn, condition=condition)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("size", [8, 5, 2])
def test_any_function_of_images_spreads_over_the_devices(devices, count, size):
    devices(count)
    scale = {"a": np.arange(3, dtype=np.float32)}

    def fn(shared, batch):
        x, keys = batch
        draws = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        return {"scaled": x * shared["a"][None], "noise": draws}

    batch = jnp.arange(3.0 * size).reshape(size, 3), sampling.image_keys(range(size))
    found, expected = parallel.data_parallel(fn, scale)(batch), fn(scale, batch)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_divergence_is_reported_from_any_device():
    keys = sampling.image_keys(range(8))
    with pytest.raises(sampling.SamplingDiverged, match="NaN"):
        parallel.sample(sampler(), keys, jax.tree_util.Partial(lambda x, t: x * jnp.float32(jnp.nan)))


def test_no_keys_are_refused(score_fn):
    with pytest.raises(PdsError, match="no images"):
        parallel.sample(sampler(), sampling.image_keys([]), score_fn)


def test_sums_over_devices_are_the_sums(stats):
    found = statistics.compute_statistics([IMAGES], block=16, sums_fn=parallel.sums_fn)
    np.testing.assert_allclose(found.power, stats.power, rtol=1e-4)
    np.testing.assert_allclose(found.mean, stats.mean, rtol=1e-5)
    assert found.count == stats.count


def test_a_block_that_does_not_divide_is_filled_up(stats):
    found = statistics.compute_statistics([IMAGES], block=13, sums_fn=parallel.sums_fn)
    np.testing.assert_allclose(found.power, stats.power, rtol=1e-4)
    assert found.count == stats.count and found.provenance["images_sha256"] == stats.provenance["images_sha256"]


def test_gathering_in_one_process_is_the_tree_itself():
    tree = {"a": np.arange(3.0)}
    assert processes.gather(tree)[0] is tree and processes.any_process(True) and not processes.any_process(False)


def test_batches_split_in_order():
    batch = np.arange(2 * 8).reshape(2, 8, 1)
    split = parallel.split(batch)
    assert split.shape == (4, 2, 2, 1)
    np.testing.assert_array_equal(np.moveaxis(split, 0, 1).reshape(2, 8, 1), batch)
    with pytest.raises(PdsError, match="training.batch_size=6.*4 devices"):
        parallel.check_divides(6, "training.batch_size")


def test_replicated_trees_come_back():
    tree = {"a": jnp.arange(3.0), "b": 2}
    copied = parallel.replicate(tree)
    assert copied["a"].shape == (4, 3)
    np.testing.assert_array_equal(parallel.unreplicate(copied)["a"], tree["a"])


def test_a_tree_comes_back_from_one_device_without_a_program_of_all():
    placed = jax.pmap(lambda x: 2 * x)(np.ones((4, 3, 17), np.float32))
    with jax.log_compiles(), CompileCount() as count:
        found = parallel.unreplicate({"a": placed})["a"]
    assert not count.names and isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, np.full((3, 17), 2))


@pytest.mark.parametrize(
    "environment, arguments",
    [
        ({"PDS_JAX_COORDINATOR": "localhost:1"}, {}),
        ({}, dict(coordinator="localhost:1", num_processes=2)),
        ({}, dict(coordinator="localhost:1", num_processes=2, process_id=2)),
        ({"PDS_JAX_NUM_PROCESSES": "x", "PDS_JAX_PROCESS_ID": "0"}, dict(coordinator="localhost:1")),
    ],
)
def test_half_a_description_of_several_processes_is_refused(environment, arguments):
    with pytest.raises(PdsError, match="process"):
        processes.initialize_distributed(**arguments, environment=environment)


def test_one_process_needs_no_coordinator():
    assert processes.initialize_distributed(environment={}) is False
    assert processes.process_share() == (0, 1) and processes.is_first_process()
