"""M against its dense matrix, the recorded operators, its own definition in NumPy, and every bad input."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import preconditioner as pc
from pds_jax import solenoidal, stability
from pds_jax.types import PdsError

SHAPES = [(8, 8, 3), (6, 10, 3), (7, 5, 1), (1, 4, 2)]
PDS = "torch/pds"


def full_dft(x, f):
    """F⁻¹ f F along axes 1, 2 with complex transforms in float64."""
    return np.fft.ifft2(f[None] * np.fft.fft2(x, axes=(1, 2)), axes=(1, 2))


def raw_statistics(shape, seed=0):
    """Raw r_f, r_a of random images, as any data set has them."""
    x = np.random.default_rng(seed).random((20, *shape))
    power = np.mean(np.abs(np.fft.fft2(x, axes=(1, 2))) ** 2, axis=0)
    return types.SimpleNamespace(r_f=np.log1p(power).astype(np.float32), r_a=np.mean(x**2, axis=0).astype(np.float32))


def filters(stats, alpha):
    """R and A by their definition in float64, full plane."""
    return tuple(alpha / (r.astype(np.float64) / r.max() + alpha - 1) for r in (stats.r_f, stats.r_a))


_all_four = jax.jit(lambda m, x: (m.apply(x), m.transpose(x), m.gram(x), m.drift(x)))


def dense(m, shape):
    """The matrices of M, Mᵀ, M Mᵀ and M Mᵀ + S on images of one shape."""
    size = math.prod(shape)
    basis = np.eye(size, dtype=np.float32).reshape(-1, *shape)
    return [np.asarray(images, np.float64).reshape(size, size).T for images in _all_four(m, basis)]


def count_fft(function, *args):
    """Transforms in the traced program, those inside called sub-programs included."""

    def walk(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            total += eqn.primitive.name == "fft"
            total += sum(walk(p.jaxpr) for p in eqn.params.values() if hasattr(p, "jaxpr"))
        return total

    return walk(jax.make_jaxpr(function)(*args).jaxpr)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("which", ["freq", "space", "both"])
def test_dense_matrix(shape, which):
    stats = raw_statistics(shape)
    m = pc.from_statistics(stats, 2.2, filters=which)
    big_r, big_a = filters(stats, 2.2)
    big_r = big_r if which != "space" else np.ones(shape)
    big_a = big_a if which != "freq" else np.ones(shape)
    matrix, transpose, gram, drift = dense(m, shape)
    eye = np.eye(math.prod(shape)).reshape(-1, *shape)
    reference = full_dft(big_a[None] * eye, big_r)
    assert np.abs(reference.imag).max() < 1e-12
    np.testing.assert_allclose(matrix, reference.real.reshape(len(eye), -1).T, atol=2e-6)
    np.testing.assert_allclose(transpose, matrix.T, atol=2e-6)
    np.testing.assert_allclose(gram, matrix @ matrix.T, atol=1e-5)
    np.testing.assert_array_equal(drift, gram)
    largest = np.linalg.eigvalsh(matrix @ matrix.T)[-1]
    assert largest == pytest.approx(float(pc.lambda_max(m)), rel=1e-5)


def test_largest_eigenvalue_of_both_filters_by_lanczos():
    m = pc.from_statistics(raw_statistics((12, 9, 2)), 2.0, filters="both")
    matrix = dense(m, (12, 9, 2))[0]
    largest = float(pc.lambda_max(m))
    assert largest == pytest.approx(np.linalg.eigvalsh(matrix @ matrix.T)[-1], rel=1e-4)
    assert largest < 0.999 * float(jnp.max(m.freq) * jnp.max(m.space)) ** 2


def test_step_limit_with_a_solenoidal_term():
    """|1 − q (λ + i w)| crosses 1 at q = 2 λ/(λ² + w²); the limit is the worst mode's."""
    m = solenoidal.with_solenoidal(pc.from_statistics(raw_statistics((6, 10, 3)), 2.2), 1.5)
    lam, w = np.square(np.asarray(m.freq, np.float64)), np.asarray(m.skew, np.float64)
    q = 2 / float(stability.step_limit(m))
    worst = lambda q: np.abs(1 - q * (lam + 1j * w)).max()  # noqa: E731
    assert worst(0.999 * q) < 1 < worst(1.001 * q)
    assert float(stability.step_limit(m)) > 1.01 * float(pc.lambda_max(m))


@pytest.mark.parametrize("shape", SHAPES)
def test_solenoidal_is_skew_and_a_central_difference(shape):
    m = solenoidal.with_solenoidal(pc.from_statistics(raw_statistics(shape), 3.0, filters="both"), 0.7)
    _, _, gram, drift = dense(m, shape)
    skew = drift - gram
    np.testing.assert_allclose(skew, -skew.T, atol=1e-5)
    g = np.random.default_rng(1).standard_normal((2, *shape))
    moved = np.stack([(skew @ one.reshape(-1)).reshape(shape) for one in g])
    assert abs(np.sum(moved * g)) < 1e-5 * np.sum(g * g)
    difference = (np.roll(g, (-1, -1), (1, 2)) - np.roll(g, (1, 1), (1, 2))) / 2
    np.testing.assert_allclose(moved, 0.7 * difference, atol=1e-5)


def test_solenoidal_beside_the_identity_and_alone():
    shape = (4, 6, 2)
    m = solenoidal.with_solenoidal(pc.identity(), 0.5, shape=shape)
    g = jnp.asarray(np.random.default_rng(1).standard_normal((3, *shape)), jnp.float32)
    assert not m.is_identity
    assert m.apply(g) is g and m.gram(g) is g
    difference = (np.roll(g, (-1, -1), (1, 2)) - np.roll(g, (1, 1), (1, 2))) / 2
    np.testing.assert_allclose(m.drift(g), g + 0.5 * difference, atol=1e-6)
    assert solenoidal.with_solenoidal(m, 0.0) is m
    freq = solenoidal.with_solenoidal(pc.from_statistics(raw_statistics(shape), 3.0), 0.5)
    assert count_fft(freq.drift, g) == 2
    with pytest.raises(PdsError, match="needs the image shape"):
        solenoidal.with_solenoidal(pc.identity(), 0.5)
    with pytest.raises(PdsError, match="must be odd"):
        solenoidal.with_solenoidal(m, 0.5, w=np.ones((4, 6)))
    with pytest.raises(PdsError, match="finite"):
        solenoidal.with_solenoidal(m, math.nan)


def test_identity_is_nothing_at_all():
    z = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 4, 3)), jnp.float32)
    stats = raw_statistics((5, 4, 3))
    for m in (
        pc.identity(),
        pc.from_statistics(stats, math.inf),
        pc.from_statistics(stats, math.inf, "both", "eccv2022"),
        pc.from_masks(None, "", 5.0),
        pc.from_radius((5, 4, 3), 1.0, 1.0),
    ):
        assert m.is_identity
        for method in (m.apply, m.transpose, m.gram, m.drift):
            np.testing.assert_array_equal(method(z), z)
            assert len(jax.make_jaxpr(method)(z).eqns) == 0
        assert m.describe()["sha256"] is None
        m.check_shape((1, 2, 3))


def test_transform_counts():
    g = jnp.ones((2, 6, 6, 3), jnp.float32)
    stats = raw_statistics((6, 6, 3))
    counts = {
        which: [count_fft(method, g) for method in (m.apply, m.transpose, m.gram)]
        for which in ("freq", "space", "both")
        for m in [pc.from_statistics(stats, 5.0, filters=which)]
    }
    assert counts == {"freq": [2, 2, 2], "space": [0, 0, 0], "both": [2, 2, 4]}


def test_recorded_filters_and_operators(golden):
    masks = np.load(golden / PDS / "masks_processed.npz")
    recorded = np.load(golden / PDS / "operators.npz")
    paths = golden / PDS / "freq_mask.npy", golden / PDS / "space_mask.npy"
    for alpha in (5, 2.2):
        m = pc.from_masks(*paths, alpha)
        freq, space = (masks[f"{name}_a{alpha}"][0].transpose(1, 2, 0) for name in ("freq", "space"))
        np.testing.assert_allclose(m.freq, freq[:, :9], atol=1e-6)
        np.testing.assert_allclose(m.space, space, atol=1e-6)
    z, g = (recorded[name].transpose(0, 2, 3, 1) for name in "zg")
    chosen = {"none": (None, None), "freq": (paths[0], None), "space": (None, paths[1]), "both": paths}
    for name, pair in chosen.items():
        m = pc.from_masks(*pair, 5.0)
        np.testing.assert_allclose(m.apply(z), recorded[f"Mz_{name}"].transpose(0, 2, 3, 1), atol=5e-6)
        np.testing.assert_allclose(m.gram(g), recorded[f"MMTg_{name}"].transpose(0, 2, 3, 1), atol=1e-5)


def test_recorded_operators_at_another_size(golden):
    recorded = np.load(golden / PDS / "operators.npz")
    freq, space = (recorded[f"{name}12_a5"][0].transpose(1, 2, 0) for name in ("freq", "space"))
    m = pc.Preconditioner(
        freq=jnp.asarray(freq[:, :7]), space=jnp.asarray(space), alpha=jnp.float32(5), shape=(12, 12, 3)
    )
    z, g = (recorded[f"{name}12"].transpose(0, 2, 3, 1) for name in "zg")
    np.testing.assert_allclose(m.apply(z), recorded["Mz_both12"].transpose(0, 2, 3, 1), atol=5e-6)
    np.testing.assert_allclose(m.gram(g), recorded["MMTg_both12"].transpose(0, 2, 3, 1), atol=1e-5)


def test_recorded_asymmetric_mask_is_refused(golden):
    asymmetric = np.load(golden / PDS / "operators.npz")["asym_freq"][0]
    with pytest.raises(PdsError, match=r"not symmetric: \|r\(k\) - r\(-k\)\| = [\d.]+ at \(c, h, w\) = \(\d"):
        pc.from_masks(asymmetric, None, 5.0)


def test_nothing_recompiles_for_another_alpha_mask_or_recipe():
    shape = (6, 4, 3)
    traces = []

    @jax.jit
    def run(m, z):
        traces.append(1)
        return m.gram(m.apply(z))

    z = jnp.ones((2, *shape), jnp.float32)
    run(pc.from_statistics(raw_statistics(shape), 5.0), z)
    run(pc.from_statistics(raw_statistics(shape), 2.0), z)
    run(pc.from_statistics(raw_statistics(shape, 1), 3.0, recipe="eccv2022"), z)
    run(pc.from_masks(raw_statistics(shape).r_f.transpose(2, 0, 1), None, 4.0), z)
    run(pc.from_radius(shape, 1.5, 1.6), z)
    assert len(traces) == 1


def test_alpha_may_be_traced():
    stats = raw_statistics((6, 4, 3))
    alphas = np.array([2.0, 7.0, math.inf], np.float32)
    many = jax.jit(jax.vmap(lambda alpha: pc.from_statistics(stats, alpha, "both")))(alphas)
    for k, alpha in enumerate(alphas[:2]):
        one = pc.from_statistics(stats, float(alpha), "both")
        np.testing.assert_allclose(many.freq[k], one.freq, rtol=1e-6)
        np.testing.assert_allclose(many.space[k], one.space, rtol=1e-6)
    assert np.all(np.asarray(many.freq[2]) == 1) and np.all(np.asarray(many.space[2]) == 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_runs_in_float32_whatever_the_network_gives(dtype):
    m = pc.from_statistics(raw_statistics((8, 8, 3)), 5.0, filters="both")
    g = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3)), dtype)
    for half, single in zip(_all_four(m, g), _all_four(m, g.astype(jnp.float32)), strict=True):
        assert half.dtype == jnp.float32
        np.testing.assert_array_equal(half, single)


def test_filters_lie_between_one_and_their_bound():
    stats = raw_statistics((8, 8, 3))
    for alpha in (1.2, 5.0, 50.0):
        m = pc.from_statistics(stats, alpha, "both")
        for leaf in (m.freq, m.space):
            assert float(jnp.min(leaf)) == pytest.approx(1, abs=1e-6)
            assert float(jnp.max(leaf)) <= alpha / (alpha - 1)


def test_first_release_recipe():
    stats = raw_statistics((8, 6, 3))
    m = pc.from_statistics(stats, 5.0, "both", "eccv2022")
    np.testing.assert_allclose(m.freq, (5 / (stats.r_f.astype(np.float64) + 4))[:, :4], rtol=1e-6)
    np.testing.assert_allclose(m.space, 1 / stats.r_a.astype(np.float64), rtol=1e-6)
    stats.r_a[0, 0, 0] = 0
    with pytest.raises(PdsError, match="zero somewhere"):
        pc.from_statistics(stats, 5.0, "both", "eccv2022")


def test_radius_filter():
    m = pc.from_radius((8, 10, 2), r=1.6, lam=1.6)
    expected = np.full((8, 10), 1.6)
    for h in range(8):
        for w in range(10):
            if (h - 4) ** 2 + (w - 5) ** 2 <= 2 * 1.6**2:
                expected[h, w] = 1
    expected = np.fft.ifftshift(expected)
    np.testing.assert_allclose(m.freq, np.repeat(expected[:, :6, None], 2, axis=2), rtol=1e-6)
    assert m.describe()["alpha"] is None
    assert m.describe()["lambda_max"] == pytest.approx(2.56)


def test_chain():
    shape = (6, 4, 3)
    freq, space = (pc.from_statistics(raw_statistics(shape), 3.0, which) for which in ("freq", "space"))
    g = jnp.asarray(np.random.default_rng(0).standard_normal((2, *shape)), jnp.float32)
    both = pc.chain(freq, space)
    expected = pc.from_statistics(raw_statistics(shape), 3.0, "both").apply(g)
    np.testing.assert_allclose(both.apply(g), expected, atol=1e-6)
    np.testing.assert_allclose(pc.chain(freq, both).apply(g), freq.apply(both.apply(g)), atol=1e-5)
    assert pc.chain(freq, pc.identity()) is freq and pc.chain(pc.identity(), space) is space
    with pytest.raises(PdsError, match="pixel filter second"):
        pc.chain(space, freq)
    with pytest.raises(PdsError, match=r"\(6, 4, 3\), M₂ for \(8, 8, 3\)"):
        pc.chain(freq, pc.from_statistics(raw_statistics((8, 8, 3)), 3.0))


def test_describe_tells_filters_apart():
    stats = raw_statistics((6, 6, 3))
    one, same, other = (pc.from_statistics(stats, alpha).describe() for alpha in (5.0, 5.0, 4.0))
    assert one == same and one["sha256"] != other["sha256"]
    assert one["recipe"] == "ijcv2025" and one["alpha"] == 5.0 and one["filters"] == ["freq"]
    skew = solenoidal.with_solenoidal(pc.from_statistics(stats, 5.0), 0.5).describe()
    assert skew["filters"] == ["freq", "skew"] and skew["alpha"] == 5.0


# ---- bad input ----


@pytest.mark.parametrize("alpha", [1.0, 0.0, -3.0, math.nan, -math.inf])
def test_bad_alpha(alpha):
    with pytest.raises(PdsError, match="above 1"):
        pc.from_statistics(raw_statistics((4, 4, 1)), alpha)


def test_unknown_names_list_the_known():
    stats = raw_statistics((4, 4, 1))
    with pytest.raises(PdsError, match="'fourier'; known: freq, space, both"):
        pc.from_statistics(stats, 5.0, filters="fourier")
    with pytest.raises(PdsError, match="'cvpr'; known: ijcv2025, eccv2022"):
        pc.from_statistics(stats, 5.0, recipe="cvpr")


@pytest.mark.parametrize(("r", "lam"), [(-1, 1.6), (math.nan, 1.6), (math.inf, 1.6), (1, 0), (1, -2), (1, math.nan)])
def test_bad_radius(r, lam):
    with pytest.raises(PdsError, match="use a finite number"):
        pc.from_radius((4, 4, 1), r, lam)


def test_wrong_shape_names_both():
    m = pc.from_statistics(raw_statistics((8, 8, 3)), 5.0)
    message = r"\(8, 8, 3\).*\(16, 16, 3\)"
    with pytest.raises(PdsError, match=message):
        m.apply(jnp.ones((2, 16, 16, 3), jnp.float32))
    with pytest.raises(PdsError, match=message):
        m.check_shape((16, 16, 3))
    mask = raw_statistics((8, 8, 3)).r_f.transpose(2, 0, 1)
    with pytest.raises(PdsError, match=r"\(3, 8, 8\).*\(16, 16, 3\).*\(3, 16, 16\)"):
        pc.from_masks(mask, None, 5.0, shape=(16, 16, 3))
    with pytest.raises(PdsError, match=r"\(8, 8\); official raw masks are \(C, H, W\)"):
        pc.from_masks(mask[0], None, 5.0)
    with pytest.raises(PdsError, match=r"(?s)\(8, 8, 3\).*\(4, 4, 3\)"):
        pc.from_masks(mask, raw_statistics((4, 4, 3)).r_a.transpose(2, 0, 1), 5.0)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_bad_mask_values_are_located(bad):
    mask = raw_statistics((4, 6, 3)).r_a.transpose(2, 0, 1).copy()
    mask[1, 2, 3] = bad
    with pytest.raises(PdsError, match=r"space mask has the value .* at \(c, h, w\) = \(1, 2, 3\)"):
        pc.from_masks(None, mask, 5.0)


def test_bad_mask_arrays():
    with pytest.raises(PdsError, match="int64.*float32"):
        pc.from_masks(np.ones((3, 4, 4), np.int64), None, 5.0)
    with pytest.raises(PdsError, match="zero everywhere"):
        pc.from_masks(np.zeros((3, 4, 4), np.float32), None, 5.0)
    with pytest.raises(PdsError, match="shape"):
        pc.from_masks(np.zeros((0, 4, 4), np.float32), None, 5.0)
    doubles = raw_statistics((4, 4, 3)).r_f.astype(np.float64).transpose(2, 0, 1)
    assert pc.from_masks(doubles, None, 5.0).freq.dtype == jnp.float32


def test_bad_mask_files(tmp_path):
    good = tmp_path / "good.npy"
    np.save(good, raw_statistics((8, 8, 3)).r_f.transpose(2, 0, 1))
    data = good.read_bytes()
    cases = {
        "empty": (b"", "empty"),
        "truncated": (data[:-40], "truncated"),
        "longer": (data + b"0000", "truncated or damaged"),
        "header": (data[:20], "not a .npy array"),
        "text": (b"hello, world, this is no array", "not a .npy array"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.npy"
        path.write_bytes(content)
        with pytest.raises(PdsError, match=rf"{name}\.npy.*{message}"):
            pc.from_masks(path, None, 5.0)
    with pytest.raises(PdsError, match=r"cannot read .*missing\.npy"):
        pc.from_masks(str(tmp_path / "missing.npy"), None, 5.0)
    assert not pc.from_masks(good, None, 5.0).is_identity


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.save(tmp_path / "objects.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(PdsError, match="pickled"):
        pc.from_masks(tmp_path / "objects.npy", None, 5.0)
    assert not (tmp_path / "ran").exists()
