"""Guidance on Gaussian classes: closed forms, one batched evaluation, intervals, devices, bad input."""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import guidance, parallel
from pds_jax.ops import batch_mul
from pds_jax.sampling import get_pc_sampler, image_keys
from pds_jax.sde_lib import VESDE, VPSDE
from pds_jax.types import Array, PdsError

VE, VP = VESDE(0.01, 10, 50), VPSDE(0.1, 20, 50)
MEANS = jnp.asarray([[-1.0], [0.5], [2.0]], jnp.float32)  # of three classes; without a class 0.1
WIDTH = 0.5


@flax.struct.dataclass
class Classes:
    """Score of N(μ_y, ¼) for one-hot labels y, of N(0.1, 1) without; counts the images of its evaluations."""

    sde: object
    labels: Array | None = None
    seen: object = flax.struct.field(pytree_node=False, default=None)

    def __call__(self, x, t):
        if self.seen is not None:
            self.seen.append(x.shape[0])
        m, std = self.sde.mean_scale(t), self.sde.std(t)
        rows = jnp.zeros((x.shape[0], 3), jnp.float32) if self.labels is None else self.labels
        known = rows.sum(axis=1)
        mean = (rows @ MEANS)[:, 0] + (1 - known) * jnp.float32(0.1)
        variance = known * WIDTH**2 + (1 - known)
        return batch_mul(-1 / (m**2 * variance + std**2), x - (m * mean)[:, None, None, None])

    def with_labels(self, labels):
        if labels is not None and labels.shape[-1] != 3:
            raise PdsError("three classes")
        return self.replace(labels=labels)


@pytest.fixture
def batch():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 1)), jnp.float32)
    return x, jnp.asarray([0.2, 0.4, 0.6, 0.9], jnp.float32), guidance.one_hot([0, 1, 2, -1], 3)


@pytest.mark.parametrize("sde", [VE, VP], ids=["ve", "vp"])
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_classifier_free_is_the_extrapolation_of_two_scores(sde, weight, batch):
    x, t, rows = batch
    seen: list[int] = []
    guided = guidance.classifier_free(Classes(sde, seen=seen), sde, rows, weight=weight)
    found = jax.jit(lambda f: f(x, t))(guided)
    with_class, without = Classes(sde, jnp.asarray(rows))(x, t), Classes(sde)(x, t)
    np.testing.assert_allclose(found, without + weight * (with_class - without), rtol=1e-5, atol=1e-5)
    assert guided.evaluations == 2
    assert seen == [8]  # one evaluation of twice the images


def test_no_label_is_not_guided(batch):
    x, t, rows = batch
    found = guidance.classifier_free(Classes(VE), VE, rows, weight=5.0)(x, t)
    np.testing.assert_allclose(found[3], Classes(VE)(x, t)[3], rtol=1e-6)


def test_interval_of_noise_levels(batch):
    x, t, rows = batch
    levels = np.asarray(VE.std(t))
    guided = guidance.classifier_free(Classes(VE), VE, rows, weight=3.0, interval=(levels[0], levels[2]))
    found = np.asarray(jax.jit(lambda f: f(x, t))(guided))
    plain = np.asarray(guidance.conditional(Classes(VE), rows)(x, t))
    always = np.asarray(guidance.classifier_free(Classes(VE), VE, rows, weight=3.0)(x, t))
    inside = [1, 2]  # (low, high]
    np.testing.assert_allclose(found[inside], always[inside], rtol=1e-6)
    np.testing.assert_allclose(found[[0, 3]], plain[[0, 3]], rtol=1e-5)
    outside = guidance.classifier_free(Classes(VE), VE, rows, weight=3.0, interval=(20.0, 30.0))
    np.testing.assert_array_equal(jax.jit(lambda f: f(x, t))(outside), plain)


def test_away_from_a_worse_score(batch):
    x, t, rows = batch
    good, bad = guidance.conditional(Classes(VE), rows), Classes(VE)
    found = jax.jit(lambda f: f(x, t))(guidance.away_from(good, bad, VE, weight=2.0))
    np.testing.assert_allclose(found, 2 * good(x, t) - bad(x, t), rtol=1e-5)
    unguided = guidance.away_from(good, bad, VE, weight=2.0, interval=(20.0, 30.0))
    np.testing.assert_allclose(unguided(x, t), good(x, t), rtol=1e-6)
    assert unguided.evaluations == 2
    nested = guidance.away_from(guidance.classifier_free(bad, VE, rows, weight=2.0), bad, VE, weight=2.0)
    assert nested.evaluations == 3


def test_labels_and_weight_are_traced(batch):
    x, t, rows = batch
    traces = []

    @jax.jit
    def call(score, x, t):
        traces.append(1)
        return score(x, t)

    for weight, labels in ((2.0, rows), (3.0, rows[::-1].copy())):
        call(guidance.classifier_free(Classes(VE), VE, labels, weight=weight), x, t)
    assert len(traces) == 1


@pytest.mark.parametrize("weight", [None, 1.5])
@pytest.mark.parametrize("predictor", ["sde_dpmpp_2m", "reverse_diffusion"])
def test_samples_have_the_moments_of_their_class_on_all_devices(weight, predictor):
    """300 images over four devices, a class each."""
    y = np.arange(300) % 3
    rows = guidance.one_hot(y, 3)
    score = Classes(VE)
    score = guidance.conditional(score, rows) if weight is None else guidance.classifier_free(
        score, VE, rows, weight=weight
    )  # fmt: skip
    sampler = get_pc_sampler(VE, (4, 4, 1), predictor, "none")
    run = parallel.sample(sampler, image_keys(range(300)), score)
    means = np.asarray(run.x).reshape(300, -1).mean(axis=1)
    found = np.asarray([means[y == k].mean() for k in range(3)])
    if weight is None:
        np.testing.assert_allclose(found, MEANS[:, 0], atol=0.08)
    else:  # beyond the class, away from 0.1
        assert found[0] < -1.05 and found[1] > 0.5 and found[2] > 2.05


def test_a_label_belongs_to_its_image_whatever_the_devices():
    rows = guidance.one_hot([2, 0, 1, 2, 0], 3)
    sampler = get_pc_sampler(VE, (2, 2, 1), "reverse_diffusion", "none")
    together = parallel.sample(sampler, image_keys(range(5)), guidance.conditional(Classes(VE), rows)).x
    alone = parallel.sample(sampler, image_keys([3]), guidance.conditional(Classes(VE), rows[3:4])).x
    np.testing.assert_allclose(np.asarray(together)[3], np.asarray(alone)[0], rtol=1e-4, atol=1e-5)


def test_random_classes_depend_on_their_seed_alone():
    classes = guidance.random_classes(range(2000), 10)
    assert guidance.random_classes([7, 3], 10) == [classes[7], classes[3]]
    counts = np.bincount(classes, minlength=10)
    assert counts.min() > 140 and counts.max() < 260


@pytest.mark.parametrize(
    ("labels", "message"),
    [([3], "label 3 of image 0"), ([0, -2], "label -2 of image 1"), ([0.5], "whole numbers"), ([[0]], "whole numbers")],
)
def test_bad_classes_are_named(labels, message):
    with pytest.raises(PdsError, match=message):
        guidance.one_hot(labels, 3)


def test_bad_guidance_is_named(batch):
    rows = batch[2]
    make = guidance.classifier_free
    for change, message in [
        ({"weight": -1.0}, "weight -1"),
        ({"weight": math.nan}, "weight nan"),
        ({"weight": 2.0, "interval": (1.0, 1.0)}, "low < high"),
        ({"weight": 2.0, "interval": (-1.0, 1.0)}, "low < high"),
        ({"weight": 2.0, "null": np.zeros((1, 3), np.float32)}, "null has shape"),
    ]:
        with pytest.raises(PdsError, match=message):
            make(Classes(VE), VE, rows, **change)
    with pytest.raises(PdsError, match="takes no labels"):
        guidance.conditional(lambda x, t: -x, rows)
    with pytest.raises(PdsError, match="three classes"):
        guidance.conditional(Classes(VE), np.zeros((4, 5), np.float32))
    with pytest.raises(PdsError, match="one_hot"):
        guidance.conditional(Classes(VE), np.asarray([1, 2]))
    with pytest.raises(PdsError, match="without classes"):
        guidance.one_hot([0], 0)
