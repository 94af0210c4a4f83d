"""The predictor–corrector loop: recorded runs, keys, chunks, compilation, divergence, options."""

import functools
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from recorded import SDES, load, nhwc, pds_mask, pds_score, relative, score_sde_score, worst_sample

from pds_jax import correctors, preconditioner, runner, sampling
from pds_jax.ode_sampler import ODESampler
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.types import PdsError

SHAPE = (6, 4, 2)
RNG = np.random.default_rng(0)
MOMENTS = np.full(SHAPE, 0.4, np.float32), np.full((6, 3, 2), 0.05, np.float32)


@jax.tree_util.Partial
def score(x, t):
    return -(x - 0.4) / (0.05 + jnp.square(0.01 * 5000**t))[:, None, None, None]


def make(sde=None, *args, **options):
    return sampling.get_pc_sampler(sde or VESDE(N=20), SHAPE, *args, **{"eps": 1e-3, **options})


QUICK = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
COMPILED = {
    "init_fn": QUICK(lambda sampler, keys: sampler.init(keys)),
    "chunk_fn": QUICK(lambda sampler, carry, steps, score: sampler.run_chunk(carry, steps, score)),
}


def draw(sampler, keys, score=score, **options):
    """``sampling.run``, compiled for the short life of a test."""
    return sampling.run(sampler, keys, score, **COMPILED, **options)


def frequency_filter(alpha):
    raw = RNG.uniform(1, 5, size=(2, 6, 4))
    raw = raw + np.roll(raw[:, ::-1, ::-1], (1, 1), (1, 2))
    return preconditioner.from_masks(raw, None, alpha)


def test_recorded_runs_of_score_sde(golden):
    data = load(golden / "score_sde" / "sde" / "pc_sampler.npz")
    keys = [key for key in data if key.endswith(".noise")]
    for key in keys:
        match = re.fullmatch(r"(\w+)\.N(\d+)\.(\w+)\.(\w+)\.snr([\d.]+)\.n(\d)\.pf(\d)\.(cont|disc)\.noise", key)
        kind, n, predictor, corrector, snr, inner, flow, labels = match.groups()
        sde, base = SDES[kind](N=int(n)), key.removesuffix("noise")
        sampler = sampling.get_pc_sampler(
            sde,
            (2, 8, 8, 3),
            predictor,
            corrector,
            snr=float(snr),
            n_steps=int(inner),
            probability_flow=flow == "1",
            norm="batch",
            eps=1e-5 if kind == "vesde" else 1e-3,
        )
        model = score_sde_score(data, sde, discrete=labels == "disc")
        x, trajectory = sampling.replay(sampler, data[key], model)
        assert worst_sample(x, data[base + "sample_denoise"]) < 5e-5, key
        noisy = trajectory["x_pred"][-1]
        assert worst_sample(noisy, data[base + "sample_nodenoise"]) < 5e-5, key
        # The recorded count is N (n_steps + 1) whatever runs.
        evaluations = int(inner) * (corrector != "none") + (predictor != "none")
        assert int(sampler.nfe) == int(n) * evaluations <= int(data[base + "nfe"])
    assert len(keys) > 6


RUNS = ["ve_gauss_nomask", "ve_gauss_freq_a5", "ve_gauss_both_a5", "vp_gauss_nomask", "vp_gauss_both_a5"]


@pytest.mark.parametrize("name", [*RUNS, "subvp_gauss_nocorr_both_a5"])
def test_recorded_runs_of_the_released_code(golden, name):
    """Every recorded point of the trajectory, to 1e-5 relative."""
    data = load(golden / "torch" / "pds" / "gauss_runs.npz")
    noise = nhwc(load(golden / "torch" / "pds" / "noise.npz")["draws"][: int(data[f"{name}.n_draws"])])
    kind, mask = name.split("_")[0], name.split("_")[-2]
    sde = SDES[kind](N=20)
    sampler = sampling.get_pc_sampler(
        sde,
        (16, 16, 3),
        "reverse_diffusion",
        "none" if "nocorr" in name else "langevin",
        preconditioner=pds_mask(golden, "none" if "nomask" in name else mask),
        eps=float(data[f"{name}.eps"]),
        norm="batch",
    )
    x, trajectory = sampling.replay(sampler, noise, pds_score(golden, sde))
    assert relative(x if kind == "ve" else (x + 1) / 2, nhwc(data[f"{name}.final"])) < 1e-5
    steps = data[f"{name}.steps"]
    for key in ("x_pred", "x_corr"):
        if f"{name}.{key}" in data:
            for ours, theirs in zip(trajectory[key][steps], nhwc(data[f"{name}.{key}"]), strict=True):
                assert relative(ours, theirs) < 1e-5, key


def test_an_unstable_recorded_setting_is_refused_with_its_number(golden):
    pds = golden / "torch" / "pds"
    strong = preconditioner.from_masks(pds / "freq_mask.npy", pds / "space_mask.npy", 2.2)
    with pytest.raises(PdsError, match=r"N=20, predictor 'reverse_diffusion'.* by 1\.\d+.*up to 4\.\d+ times"):
        sampling.get_pc_sampler(VESDE(N=20), (16, 16, 3), preconditioner=strong)
    unchecked = sampling.get_pc_sampler(VESDE(N=20), (16, 16, 3), preconditioner=strong, check=False)
    noise = nhwc(load(pds / "noise.npz")["draws"][:41])
    x, _ = sampling.replay(unchecked, noise, pds_score(golden, VESDE(N=20)))
    assert np.isfinite(x).all() and np.abs(x).max() > 100  # as recorded: unstable but finite


def test_same_images_at_any_batch_size():
    """Bit for bit or, where XLA vectorises a batch of one otherwise, to the last bits."""
    sampler, seeds = make(), np.arange(64)
    together = np.asarray(draw(sampler, sampling.image_keys(seeds)).x)
    for size in (1, 7):
        parts = [draw(sampler, sampling.image_keys(seeds[i : i + size])).x for i in range(0, 14, size)]
        np.testing.assert_allclose(np.concatenate(parts), together[:14], rtol=0, atol=2e-6)
    assert relative(together[0], together[1]) > 0.1
    np.testing.assert_array_equal(draw(sampler, sampling.image_keys(seeds[::-1])).x, together[::-1])


def test_batch_norm_mode_couples_the_images():
    def first(norm, seeds):
        return draw(make(norm=norm), sampling.image_keys(seeds)).x[0]

    same, others = range(7), [0, *range(11, 17)]
    np.testing.assert_array_equal(first("sample", same), first("sample", others))
    assert relative(first("batch", same), first("batch", others)) > 1e-3


def test_chunks_trajectory_and_progress_change_nothing():
    sampler, keys, seen = make(), sampling.image_keys(range(7)), []
    whole = draw(sampler, keys)
    pieces = draw(sampler, keys, chunk=7, trajectory_every=5, progress=lambda *a: seen.append(a))
    np.testing.assert_array_equal(whole.x, pieces.x)
    assert whole.nfe == pieces.nfe == 40 and whole.trajectory == []
    assert [a for a, *_ in pieces.trajectory] == [5, 10, 15, 20] and seen[-1] == (20, 20)
    np.testing.assert_array_equal(pieces.trajectory[-1][2], whole.x)
    x, nfe = QUICK(lambda sampler, keys: sampler(keys, score))(sampler, keys)
    np.testing.assert_allclose(x, whole.x, atol=2e-6)
    assert int(nfe) == 40
    np.testing.assert_array_equal(draw(sampler, keys).x, whole.x)  # the keys were not used up


def test_replay_is_the_sampler_itself():
    """On the noise that the keys draw, replay gives the sampler's image."""
    sampler, keys = make(n_steps=2), sampling.image_keys(range(3))

    @QUICK
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def normal(key, pair):
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, pair[0]), pair[1]), SHAPE)

    pairs = np.array([(0, 0)] + [(i + 1, d) for i in range(20) for d in range(3)])
    noise = np.stack([normal(key, pairs) for key in keys], axis=1)
    x, _ = sampling.replay(sampler, noise, score)
    np.testing.assert_allclose(x, draw(sampler, keys).x, atol=2e-6)
    with pytest.raises(PdsError, match="1 \\+ 20 x 3 draws, got 60"):
        sampling.replay(sampler, noise[1:], score)


def test_denoise_and_prior():
    sampler = make(denoise=False)
    carry = COMPILED["init_fn"](sampler, sampling.image_keys(range(7)))
    carry = COMPILED["chunk_fn"](sampler, carry, np.int32(40), score)
    np.testing.assert_array_equal(sampler.result(carry), carry.x)
    np.testing.assert_array_equal(make().result(carry), carry.x_mean)
    assert relative(carry.x, carry.x_mean) > 1e-3
    m = frequency_filter(5.0)
    z = RNG.normal(size=(3, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(make(preconditioner=m).start(z).x, 50 * m.apply(z), rtol=1e-5)
    np.testing.assert_allclose(make(preconditioner=m, variant="exact").start(z).x, 50 * z, rtol=1e-6)
    matched = make(preconditioner=m, prior="matched", statistics=MOMENTS).start(z).x
    # White data of variance 0.05 and mean 0.4 at σ = 50.
    np.testing.assert_allclose(matched, 0.4 + z * np.sqrt(0.05 + 2500), rtol=1e-4, atol=1e-4)


def test_another_setting_compiles_nothing():
    """N, alpha, snr, seeds, eps, σ and β are data of the compiled program."""
    traced = []

    @jax.tree_util.Partial
    def counted(x, t):
        traced.append(1)
        return score(x, t)

    # Even from one alpha to another: the filters are leaves.
    sampling.run(make(preconditioner=frequency_filter(5.0)), sampling.image_keys(range(2)), counted)
    first, programs = len(traced), runner._run_chunk._cache_size()
    assert first > 0
    sampling.run(
        make(VESDE(0.02, 30, 900), preconditioner=frequency_filter(3.0), snr=0.1, eps=2e-3),
        sampling.image_keys([8, 9]),
        counted,
        chunk=450,
        trajectory_every=100,
    )
    assert len(traced) == first and runner._run_chunk._cache_size() == programs


def test_identity_runs_the_program_without_m():
    """No Fourier transform in it, and the same bits."""
    plain, none = make(preconditioner=preconditioner.identity()), make()
    m = make(preconditioner=frequency_filter(5.0))
    keys = sampling.image_keys(range(2))

    def program(sampler):
        return jax.jit(lambda s, k: s(k, score)[0]).lower(sampler, keys).as_text()

    assert "fft" not in program(none) and "fft" in program(m)
    infinite = make(preconditioner=preconditioner.from_radius(SHAPE, 1.0, 1.0))
    for other in (plain, infinite):
        np.testing.assert_array_equal(sampling.run(other, keys, score).x, sampling.run(none, keys, score).x)


@pytest.mark.parametrize("seconds, chunks", [(0.3, [1, 3, 3, 3, 3, 3, 3, 1]), (9.0, [1] * 20), (0.0, [1, 16, 3])])
def test_signs_of_life_come_at_their_pace(monkeypatch, seconds, chunks):
    """A step takes so many seconds of a clock that nothing else moves; no chunk is longer than 16."""
    now, lengths = [0.0], []
    monkeypatch.setattr(runner.time, "perf_counter", lambda: now[0])
    sampler, keys = make(), sampling.image_keys(range(3))

    def chunk_fn(sampler, carry, steps, score_fn):
        lengths.append(int(steps) // 2)
        now[0] += seconds * int(steps) / 2
        return COMPILED["chunk_fn"](sampler, carry, steps, score_fn)

    found = sampling.run(sampler, keys, score, **{**COMPILED, "chunk_fn": chunk_fn}, chunk=16)
    assert lengths == chunks
    np.testing.assert_array_equal(found.x, draw(sampler, keys, pace=None).x)


def test_divergence_stops_the_run_and_names_the_step():
    """The third image's score is NaN at the 8th time of 20."""
    sampler = make()
    t_bad = float(sampler.times[7])

    @jax.tree_util.Partial
    def breaks(x, t):
        bad = (t <= t_bad)[:, None, None, None] & (jnp.arange(3) == 2)[:, None, None, None]
        return jnp.where(bad, jnp.nan, score(x, t))

    done = []
    with pytest.raises(sampling.SamplingDiverged, match=rf"image 2 of 3 .* step 7 of 20, t={t_bad:.5g}") as caught:
        draw(sampler, sampling.image_keys(range(3)), breaks, chunk=5, pace=None, progress=lambda a, _: done.append(a))
    assert isinstance(caught.value, PdsError) and isinstance(caught.value, FloatingPointError)
    assert done == [5]  # the rest was not run


@pytest.mark.parametrize(
    "bad", [lambda x, t: x[..., :1], lambda x, t: jnp.zeros(x.shape, jnp.int32), lambda x, t: (x, x)]
)
def test_a_score_of_another_kind_is_refused_before_any_step(bad):
    with pytest.raises(PdsError, match="the score function returned"):
        sampling.run(make(), sampling.image_keys(range(2)), jax.tree_util.Partial(bad))


def test_low_precision_scores_leave_the_state_in_float32():
    low = jax.tree_util.Partial(lambda x, t: score(x, t).astype(jnp.bfloat16))
    sampler = make()
    carry = jax.eval_shape(lambda keys: sampler.run_chunk(sampler.init(keys), 3, low), sampling.image_keys(range(2)))
    assert carry.x.dtype == carry.x_mean.dtype == jnp.float32


STATISTICS = {"statistics": MOMENTS}


@pytest.mark.parametrize(
    ("sde", "arguments", "options", "message"),
    [
        (VESDE(N=20), ("euler",), {}, "unknown predictor 'euler'; known: .*reverse_diffusion"),
        (VESDE(N=20), ("none", "lang"), {}, "unknown corrector 'lang'; known: ald, langevin, langevin_exact, none"),
        (VESDE(N=20), ("none", "none"), {}, "both 'none'"),
        (VESDE(N=1), (), {}, "N >= 2"),
        (VESDE(N=20), (), {"snr": 0.0}, "snr=0.0"),
        (VESDE(N=20), (), {"snr": float("nan")}, "snr=nan"),
        (VESDE(N=20), (), {"n_steps": 0}, "n_steps=0"),
        (VESDE(N=20), (), {"eps": 0.0}, "0 < eps"),
        (VESDE(N=20), (), {"eps": 1.5}, "0 < eps"),
        (VESDE(N=20), (), {"variant": "ours"}, "known: paper, exact"),
        (VESDE(N=20), (), {"prior": "mine"}, "known: standard, matched"),
        (VESDE(N=20), (), {"norm": "all"}, "known: sample, batch"),
        (VESDE(N=20), (), {"grid": "cosine"}, "uniform"),
        (VESDE(N=20), (), {"grid": "edm"}, "own levels: use grid 'uniform'"),
        (VESDE(N=20), (), {"prior": "matched"}, "needs the data's statistics"),
        (VESDE(N=20), (), {"prior": "matched", "statistics": (MOMENTS[0][1:], MOMENTS[1])}, "statistics are of images"),
        (VESDE(N=20), (), {"prior": "matched", "statistics": (MOMENTS[0], 0 * MOMENTS[1])}, "power > 0"),
        (VESDE(N=20), ("ancestral_sampling",), {"probability_flow": True}, "no probability_flow"),
        (subVPSDE(N=50), ("ancestral_sampling", "none"), {}, "no form for subVPSDE"),
        (VPSDE(N=19), (), {}, r"beta_max/N = 1.05.*N > 20"),
        (VPSDE(N=20), ("ancestral_sampling", "none"), {}, "beta_max/N = 1"),
        (subVPSDE(N=19), ("none", "ald"), {}, "beta_max/N = 1.05"),
        (VESDE(N=5), ("euler_maruyama", "none"), {}, "diverges"),
        (VESDE(N=20), (), {"preconditioner": frequency_filter(5.0), "probability_flow": True, "variant": "exact"}, "M"),
        (VESDE(N=20), (), {"preconditioner": frequency_filter(1.3)}, "diverges: with N=20"),
        (VESDE(N=20), ("ddim", "none"), {"preconditioner": frequency_filter(5.0)}, "no noise for M"),
        (VESDE(N=20), ("dpmpp_2m", "langevin"), {}, "corrector 'none'"),
        (VESDE(N=20), ("spectral_ddim", "none"), {}, "needs the data's statistics"),
    ],
)
def test_refusals(sde, arguments, options, message):
    with pytest.raises(PdsError, match=message):
        make(sde, *arguments, **options)


def test_shapes():
    assert make().shape == sampling.get_pc_sampler(VESDE(N=20), (7, *SHAPE)).shape == SHAPE
    for shape in ((6, 4), (6, 0, 2), (1.5, 4, 2)):
        with pytest.raises(PdsError, match=r"\(H, W, C\)"):
            sampling.get_pc_sampler(VESDE(N=20), shape)
    with pytest.raises(PdsError, match=r"\(6, 4, 2\).*\(4, 6, 2\)"):
        sampling.get_pc_sampler(VESDE(N=20), (4, 6, 2), preconditioner=frequency_filter(5.0))


def test_vp_below_beta_max_still_runs_by_euler_maruyama():
    sampler = make(VPSDE(N=10), "euler_maruyama", "none")
    law = jax.tree_util.Partial(lambda x, t: -x)
    assert np.isfinite(draw(sampler, sampling.image_keys(range(2)), law).x).all()


def test_stability_number_of_ve():
    """λ (1 − r), r the ratio of neighbouring σ²; 3.38 = 2/(1 − r) is the limit of λ at N = 20."""
    r = (0.01 / 50) ** (2 / 19)
    # Not to the last digit: it is a quantile over steps, and t_i counts down to eps, not to 0.
    assert abs(sampling.check_stability(make()) - (1 - r)) < 5e-3
    for lam, fine in ((2 / (1 - r) * 0.99, True), (2 / (1 - r) * 1.01, False)):
        m = preconditioner.from_radius(SHAPE, 1.0, float(np.sqrt(lam)))
        if fine:
            make(preconditioner=m)
        else:
            with pytest.raises(PdsError, match=r"multiplies errors by 1\.0\d "):
                make(preconditioner=m)
    # The exact variant has half of the drift without M; known data variance damps.
    assert sampling.check_stability(make(preconditioner=m, variant="exact")) < 1.5
    sampling.check_stability(make(preconditioner=m, check=False), (MOMENTS[0], MOMENTS[1] * 1e4))


def config(**sampling_options):
    options = {
        "method": "pc",
        "predictor": "reverse_diffusion",
        "corrector": "langevin",
        "snr": 0.16,
        "n_steps_each": 1,
        "noise_removal": True,
        "probability_flow": False,
        **sampling_options,
    }
    return ml_collections.ConfigDict({"sampling": options, "model": {"num_scales": 1000}, "data": {"centered": False}})


def test_sampler_of_a_configuration():
    sampler = sampling.get_sampling_fn(config(speed_up=20.0), VESDE(N=1000), (4, *SHAPE))
    assert int(sampler.steps) == int(sampler.sde.N) == 50 and int(sampler.nfe) == 100
    assert sampler.times[49] == np.float32(2e-4) and len(sampler.times) == 50
    plain = sampling.get_sampling_fn(config(), VESDE(N=1000), SHAPE)  # score_sde's fields only
    assert int(plain.steps) == 1000 and plain.mean_fn is correctors.norm_per_image and plain.prior == "standard"
    matched = config(prior="matched", predictor="spectral_ancestral", corrector="none", grid="edm", speed_up=100.0)
    sampler = sampling.get_sampling_fn(matched, VESDE(N=1000), SHAPE, statistics=MOMENTS)
    assert sampler.prior == "matched" and int(sampler.nfe) == 10
    ode = sampling.get_sampling_fn(config(method="ode", speed_up=20.0), VESDE(N=1000), SHAPE)
    assert isinstance(ode, ODESampler) and ode.eps == np.float32(1e-5) and ode.denoise
    with pytest.raises(PdsError, match="known: pc, ode"):
        sampling.get_sampling_fn(config(method="sde"), VESDE(), SHAPE)
    with pytest.raises(PdsError, match="no noise for M"):
        sampling.get_sampling_fn(config(method="ode"), VESDE(), SHAPE, frequency_filter(5.0))
    with pytest.raises(PdsError, match="leaves N=1"):
        sampling.get_sampling_fn(config(speed_up=900.0), VESDE(), SHAPE)
    for options, match in (
        ({"solver_options": "check=False"}, "solver_options: check is not an option of a predictor or a grid"),
        ({"solver_options": "grid=edm"}, "solver_options: grid is not an option"),
        ({"solver_options": "kappa=1", "kappa": 0.5}, "kappa is given both as an option and in solver_options"),
    ):
        with pytest.raises(PdsError, match=match):
            sampling.get_sampling_fn(config(**options), VESDE(), SHAPE)


def test_statistics_are_taken_to_the_models_range():
    class Statistics:
        def to_range(self, centered):
            assert centered is True
            return MOMENTS

    centered = config(prior="matched")
    centered.data.centered = True
    sampler = sampling.get_sampling_fn(centered, VESDE(N=1000), SHAPE, statistics=Statistics())
    np.testing.assert_array_equal(sampler.moments[0], MOMENTS[0])
    with pytest.raises(PdsError, match="to_range"):
        make(prior="matched", statistics=Statistics())


def test_image_keys_are_of_seed_and_index():
    a, b = sampling.image_keys([3, 5]), sampling.image_keys(np.array([5]))
    data = functools.partial(jax.random.key_data)
    np.testing.assert_array_equal(data(a)[1], data(b)[0])
    np.testing.assert_array_equal(data(a)[0], data(jax.random.fold_in(jax.random.key(0), 3)))
    assert not np.array_equal(data(sampling.image_keys([5], seed=1)), data(b))
