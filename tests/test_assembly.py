"""Plans: what is asked for is what runs, or is refused."""

import dataclasses
import functools

import numpy as np
import pytest
from ml_collections import ConfigDict

import pds_jax
from pds_jax import assembly, choose, classes, gits, parallel, statistics, teacher, time_grids
from pds_jax.metrics import simple
from pds_jax.runner import SamplingDiverged
from pds_jax.types import PdsError

MEASURED = choose.Measured((4.0, 1.0), (1.0, 1.0), 9.0)
FEW = {"predictor": "reverse_diffusion", "corrector": "none"}


@pytest.fixture(scope="module")
def digits():
    return assembly.load("digits")


def changed(config, **model):
    """A copy with other fields of its section model."""
    return ConfigDict({**config.to_dict(), "model": {**config.model.to_dict(), **model}})


@pytest.mark.parametrize("nfe", [19, 20, 21])
def test_a_plan_of_heun_has_the_evaluations_asked_for_or_one_fewer(digits, nfe):
    plan = assembly.plan(digits, nfe=nfe, predictor="heun", corrector="none", grid="edm")
    assert plan.nfe == nfe - (nfe % 2 == 0) and plan.nfe == int(plan.sampler.nfe)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"nfe": 40, "speed_up": 20}, "nfe=40 and speed_up=20 both"),
        ({"nfe": 1}, "nfe=1: predictor .* needs at least 2"),
        ({"nfe": 100_000}, "more than the model's num_scales"),
        ({"nfe": 40, "method": "ode"}, "nfe: method 'ode' chooses its steps"),
        ({"speed_up": 20.0, "method": "ode"}, "speed_up: method 'ode' chooses its steps"),
        ({"method": "ode"}, "^predictor has no effect here: method 'ode' solves the flow adaptively"),
        *(
            ({"method": "ode", "predictor": None, "corrector": None, name: value}, f"^{name} has no effect here")
            for name, value in (
                ("grid", "edm"),
                ("snr", 0.1),
                ("head_start", 2.0),
                ("kappa", 0.4),
                ("probability_flow", True),
                ("solver_options", "order=7,foo=3"),
            )
        ),
        ({"nfe": 40, "snr": 0.1}, "^snr has no effect here: there is no corrector"),
        ({"nfe": 40, "n_steps_each": 2}, "^n_steps_each has no effect here: there is no corrector"),
        ({"nfe": 5, "predictor": "auto", "corrector": None, "snr": 0.1}, "^snr has no effect here: predictor=auto"),
        ({"nfe": 40, "predictr": "ddim"}, "unknown sampling option 'predictr'.*did you mean predictor"),
        ({"nfe": 40, "alpha": 5.0, "r": 2.0, "lam": 1.2}, "has no alpha"),
        ({"nfe": 40, "alpha": float("inf"), "r": 2.0, "lam": 1.2}, "has no alpha"),
        ({"nfe": "40"}, "nfe='40': use a number"),
        ({"nfe": float("nan")}, "nfe=nan: use a number"),
        ({"speed_up": "3"}, "speed_up='3': use a number"),
        ({"nfe": 40, "corrector": "langevin", "snr": "high"}, "snr=high: the corrector needs a finite number"),
        ({"nfe": 40, "corrector": "langevin", "corrector_levels": 3}, "corrector_levels=3: give the lowest and"),
        ({"nfe": 40, "kappa": 0.5}, "has no kappa option"),
        ({"nfe": 40, "stochasticity": 0.0}, "has no stochasticity option"),
        *(
            ({"nfe": 20, "predictor": "ddim", "solver_options": text}, "'ddim' has no .* option")
            for text in ("foo=0", "foo=False", "foo=None", "foo=paper", "rho=0", "order=0")
        ),
        ({"nfe": 20, "predictor": "ddim", "grid": "edm", "solver_options": "rho=5,rho=3"}, "rho is given 2 times"),
        ({"nfe": 40, "grid": "gits"}, "reverse_diffusion' steps through the SDE's own levels.*not 'gits'"),
        ({"nfe": 40, "r": 0.0, "lam": 1.6}, "r=0.0 and lam=1.6: the two-number filter needs a radius r > 0"),
        ({"nfe": 40, "lam": 1.6}, "the two-number filter needs a radius r > 0"),
        ({"nfe": 40, "r": 3.0}, "r=3.0: with lam=1 M is the identity"),
        ({"nfe": 40, "gain": 1.6}, "gain=1.6 has no effect here: it belongs to filters=flat"),
        ({"nfe": 40, "filters": "xx"}, "freq, space, both, flat"),
        ({"nfe": 40, "recipe": "xx"}, "ijcv2025"),
        ({"nfe": 40, "freq_mask_path": "m.npy", "filters": "both"}, "filters=both has no effect here: M comes from"),
        ({"nfe": 9, "predictor": "auto", "corrector": None, "freq_mask_path": "m.npy"}, "predictor=auto decides it"),
        ({"nfe": 40, "alpha": "five"}, "alpha=five: use a number above 1"),
    ],
)
def test_options_that_exclude_each_other_or_do_not_exist_are_refused(digits, options, match):
    with pytest.raises(PdsError, match=match):
        assembly.plan(digits, **{name: value for name, value in {**FEW, **options}.items() if value is not None})


def test_a_plan_takes_a_predictors_own_options(digits):
    words = {"grid": "edm", "prior": "matched", "kappa": 0.4, "stochasticity": 0.5, "head_start": 2.0}
    plan = assembly.plan(digits, nfe=6, predictor="spectral", corrector="none", **words)
    assert float(plan.sampler.numbers["kappa"]) == pytest.approx(0.4) and plan.describe()["sampling"]["head_start"] == 2
    assert float(digits.sde.std(plan.sampler.times[:1])[0]) == pytest.approx(2.0, rel=1e-4)


@pytest.mark.slow
def test_steps_are_reported_in_order_up_to_all_of_them_over_batches(digits):
    seen = []
    plan = assembly.plan(digits, nfe=30, **FEW)
    drawn = assembly.draw(digits, plan, range(3), batch_size=2, on_step=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (60, 60) and [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert drawn.pixels.dtype == "uint8" and drawn.pixels.shape == (3, 8, 8, 1)
    without = assembly.draw(digits, plan, range(3), batch_size=2)
    np.testing.assert_array_equal(drawn.images, without.images)


def test_a_flat_m_has_a_gain_and_no_alpha():
    trained = pds_jax.load("digits")
    plan = pds_jax.plan(trained, nfe=20, filters="flat", gain=1.1)
    assert plan.preconditioner.describe()["recipe"] == "flat(1.1)"
    assert float(plan.preconditioner.describe()["lambda_max"]) == pytest.approx(1.21)
    for options in ({"alpha": 5.0}, {"r": 1.0, "lam": 1.2}):
        with pytest.raises(PdsError, match="filters=flat is M = gain I"):
            pds_jax.plan(trained, nfe=20, filters="flat", gain=1.1, **options)
    with pytest.raises(PdsError, match="flat gain c=-1"):
        pds_jax.plan(trained, nfe=20, filters="flat", gain=-1.0)


def test_alpha_infinity_turns_masks_off_too_and_is_five_where_none_is_given(digits, tmp_path):
    spectrum = np.array([9.0, 4.0, 2.0, 1.5, 1.0, 1.5, 2.0, 4.0])
    np.save(tmp_path / "freq.npy", np.sqrt(np.outer(spectrum, spectrum))[None].astype(np.float32))
    alphas = {}
    for alpha in (None, np.inf, "inf", 20.0):
        plan = pds_jax.plan(digits, nfe=20, alpha=alpha, freq_mask_path=str(tmp_path / "freq.npy"), **FEW)
        alphas[alpha] = plan.alpha, plan.preconditioner.is_identity
    assert alphas == {None: (5.0, False), np.inf: (np.inf, True), "inf": (np.inf, True), 20.0: (20.0, False)}


@pytest.mark.slow
def test_the_grid_gits_takes_times_of_the_networks_own_path(digits, monkeypatch):
    monkeypatch.setattr(teacher, "STEPS", 21)
    monkeypatch.setattr(teacher, "IMAGES", 4)
    words = {"nfe": 6, "predictor": "dpmpp_2m", "corrector": "none", "prior": "matched"}
    plan = assembly.plan(digits, grid="gits", solver_options="coeff=1.1", **words)
    edm = assembly.plan(digits, grid="edm", **words)
    of = teacher.costs(digits.sde, digits.shape, float(edm.sampler.times[-1]), digits.score_fn)
    assert plan.nfe == 6 and plan.reasons[0].startswith("grid=gits: 6 of 21 times of DDIM")
    times = np.asarray(plan.sampler.times)
    chosen = [int(np.abs(of["teacher"] - t).argmin()) for t in times]
    np.testing.assert_allclose(of["teacher"][chosen], times, rtol=1e-6)

    def paid(path):
        steps = zip(path[:-1], path[1:], strict=True)
        return sum(of["cost"][i, j] * 1.1**place for place, (i, j) in enumerate(steps))

    assert chosen[0] == 0 and chosen[-1] == 20 and paid(chosen) < paid([0, 4, 8, 12, 16, 20])
    assert plan.describe()["sampling"]["grid"] == pytest.approx(times.tolist())


@pytest.mark.parametrize("seeds", ["12", 5, [-1], [2**32], [2**70], [1.5], [[0, 1]], [True], np.array([-1]), None])
def test_seeds_are_whole_numbers(digits, seeds):
    plan = assembly.plan(digits, nfe=2, **FEW)
    with pytest.raises(PdsError, match="give whole numbers from 0 to 2\\^32 - 1"):
        assembly.draw(digits, plan, seeds)


@pytest.mark.parametrize(
    "words", [{"batch_size": 0}, {"batch_size": -1}, {"batch_size": 1.5}, {"trajectory_every": -1}]
)
def test_counts_of_a_drawing_are_whole_numbers(digits, words):
    with pytest.raises(PdsError, match=f"{next(iter(words))}=.*: use a whole number of at least"):
        assembly.draw(digits, assembly.plan(digits, nfe=2, **FEW), [0], **words)


def test_a_seed_has_one_label():
    assert classes.labels_of([1, 2, 1], [4, 5, 4], 3, "a network") == [1, 2, 1]
    with pytest.raises(PdsError, match="seed 4 has the labels 1 and 2"):
        classes.labels_of([1, 2], [4, 4], 3, "a network")


@pytest.mark.parametrize(
    "options, match",
    [
        ({"nfe": 62}, "2 to 61 points, got N=62"),
        ({"solver_options": "coeff=-1"}, "coeff=-1"),
        ({"solver_options": "rho=3"}, "has no rho option"),
        ({"prior": "matched", "head_start": 2.0}, "'gits' has a first time of its own"),
        ({"head_start": "auto", "grid": "edm"}, "use prior 'matched'"),
        ({"corrector": "langevin", "corrector_levels": (0, 1)}, "with corrector_levels it depends on the times"),
        ({"alpha": 5.0}, "no noise for M to act on"),
        ({"filters": "flat", "gain": 1.1}, "no noise for M to act on"),
        ({"alpha": 5.0, "head_start": "auto", "grid": "edm", "prior": "matched"}, "no noise for M to act on"),
    ],
)
def test_what_is_refused_is_refused_before_the_network_runs(digits, monkeypatch, options, match):
    monkeypatch.setattr(teacher, "costs", lambda *_: pytest.fail("the teacher ran"))
    monkeypatch.setattr(choose, "remembered", lambda *_: pytest.fail("the network was measured"))
    with pytest.raises(PdsError, match=match):
        assembly.plan(digits, **{"nfe": 6, "predictor": "ddim", "corrector": "none", "grid": "gits", **options})


def test_the_grid_gits_keeps_to_the_evaluations_where_a_sampler_repeats_levels(digits, monkeypatch):
    even = np.square(np.subtract.outer(np.arange(61.0), np.arange(61.0)))
    monkeypatch.setattr(
        teacher,
        "costs",
        lambda sde, shape, eps, *_: {"cost": even, "teacher": time_grids.edm_rho(sde, eps, 61)},
    )
    words = {"predictor": "restart", "corrector": "none"}
    assert assembly.plan(digits, nfe=20, grid="gits", **words).nfe == assembly.plan(digits, nfe=20, **words).nfe == 19
    levels = {"predictor": "ddim", "corrector": "langevin", "corrector_levels": (0, 1)}
    assert assembly.plan(digits, speed_up=100.0, grid="gits", **levels).N == 10


def test_times_may_be_an_array_and_leave_no_number_of_steps_to_choose(digits):
    words = {"predictor": "ddim", "corrector": "none"}
    plan = assembly.plan(digits, grid=np.array([1.0, 0.5, 0.1]), **words)
    assert plan.nfe == 3 and plan.describe()["sampling"]["grid"] == [1.0, 0.5, 0.1]
    for count in ({"nfe": 10}, {"speed_up": 20.0}):
        with pytest.raises(PdsError, match="a list of times says how many steps"):
            assembly.plan(digits, grid=[1.0, 0.5, 0.1], **words, **count)


def test_what_is_remembered_of_a_score_belongs_to_all_that_decides_it(digits, monkeypatch):
    keys = []
    monkeypatch.setattr(choose, "remembered", lambda name, key, compute: keys.append(key) or MEASURED)
    monkeypatch.setattr(teacher, "costs", lambda sde, shape, eps, score_fn, key: keys.append(key) or {})
    monkeypatch.setattr(gits, "gits", lambda *_, **__: np.array([1.0, 0.1]))
    other = assembly.load("digits", changed(digits.config, sigma_max=20.0))
    statistics = dataclasses.replace(digits.statistics, power=2 * digits.statistics.power)
    for trained in (digits, other, dataclasses.replace(digits, statistics=statistics), digits):
        assembly.plan(trained, nfe=5, predictor="auto")
        assembly.plan(trained, nfe=5, predictor="dpmpp_2m", corrector="none", grid="gits")
    assert len(set(keys)) == 6 and keys[:2] == keys[-2:]


def test_a_network_with_classes_is_measured_with_random_ones_and_guided(digits, monkeypatch):
    class Score:
        def with_labels(self, labels):
            return self

    found = []
    even = np.square(np.subtract.outer(np.arange(61.0), np.arange(61.0)))

    def costs(sde, shape, eps, score_fn, key):
        found.append((score_fn, key))
        return {"cost": even, "teacher": time_grids.edm_rho(sde, eps, 61)}

    monkeypatch.setattr(teacher, "costs", costs)
    trained = dataclasses.replace(digits, config=changed(digits.config, label_dim=3), score_fn=Score())
    words = {"nfe": 10, "predictor": "ddim", "corrector": "none", "grid": "gits"}
    assembly.plan(trained, **words)
    assert assembly.plan(trained, **words, guidance=2.0).nfe == 10
    assembly.plan(digits, **words)
    (plain, _), (guided, key), (own, _) = found
    labels = np.asarray(plain.labels)
    assert labels.shape == (64, 3) and (labels.sum(axis=1) == 1).all() and key == ""
    assert float(guided.weight) == 2 and own is digits.score_fn
    with pytest.raises(PdsError, match="pilot_gain draws its pilot without classes"):
        assembly.plan(trained, nfe=5, predictor="spectral", corrector="none", prior="matched", pilot_gain=True)


def test_the_statistics_in_a_sampler_are_part_of_its_description(digits, tmp_path):
    dataclasses.replace(digits.statistics, mean=digits.statistics.mean / 2).save(tmp_path / "other.npz")
    for words in ({"prior": "matched"}, {"grid": "spectrum"}):
        words |= {"nfe": 5, "predictor": "ddim", "corrector": "none"}
        first, again = (assembly.plan(digits, **words).describe() for _ in range(2))
        other = assembly.plan(digits, **words, statistics=str(tmp_path / "other.npz")).describe()
        assert first == again and first["statistics_sha256"] != other["statistics_sha256"]
    assert "statistics_sha256" not in assembly.plan(digits, nfe=5, **FEW).describe()
    swapped = dataclasses.replace(digits, statistics=statistics.load(tmp_path / "other.npz"))
    assert swapped.identity != digits.identity == assembly.load("digits").identity  # the network holds them too


@pytest.fixture
def mask(digits, tmp_path):
    path = tmp_path / "freq.npy"
    np.save(path, np.transpose(digits.statistics.r_f, (2, 0, 1)).astype(np.float32))
    return str(path)


@pytest.fixture
def trials(digits, monkeypatch):
    """The M of each trial of alpha="tune", of which the best is that without M."""
    tried = {}

    def draw(trained, plan, seeds, *, label, **_):
        if label.startswith("trying"):
            tried[label] = plan.preconditioner
        return assembly.Drawn(np.zeros((1, *digits.shape), np.float32), 1.0, 0.0, 0.0, [], 1)

    monkeypatch.setattr(assembly, "draw", draw)

    def distance(_):
        return 1.0 if list(tried)[-1:] in ([], ["trying alpha=inf"]) else 2.0

    monkeypatch.setattr(simple, "distance_from", lambda _: distance)
    return tried


@pytest.mark.parametrize("options", [{}, {"filters": "flat"}, {"freq_mask_path": "mask"}])
def test_the_trial_of_tune_without_m_is_without_m(digits, trials, mask, options):
    words = {name: mask if value == "mask" else value for name, value in options.items()}
    config = ConfigDict(digits.config.to_dict())
    config.pds.gain = 1.37  # of the configuration, not given
    plan = assembly.plan(dataclasses.replace(digits, config=config), nfe=40, alpha="tune", **FEW, **words)
    assert [label for label, m in trials.items() if m.is_identity] == ["trying alpha=inf"] and len(trials) > 3
    assert plan.reasons[0].startswith("no M") and plan.preconditioner.is_identity and plan.alpha == np.inf


@pytest.mark.parametrize(
    "options",
    [
        {"corrector": "langevin", "corrector_levels": (0.1, 1.0), "snr": 0.3, "norm": "batch", "solenoidal": 1.0},
        {"predictor": "sde_dpmpp_2m", "variant": "exact", "corrector": "none", "grid": "edm", "head_start": 2.0},
        {"predictor": "spectral", "stochasticity": "M", "kappa": 0.3, "corrector": "none", "grid": "edm"},
        {"corrector": "none", "filters": "freq", "prior": "standard"},
    ],
)
def test_tune_compares_with_many_steps_whatever_is_tuned(digits, monkeypatch, options):
    plans = {}

    def draw(trained, plan, seeds, *, label, **_):
        plans[label] = plan
        return assembly.Drawn(np.random.default_rng(0).uniform(size=(4, *digits.shape)), 1.0, 0.0, 0.0, [], 1)

    monkeypatch.setattr(assembly, "draw", draw)
    options = {**options, "prior": options.get("prior", "matched")}
    for scales in (int(digits.config.model.num_scales), 12):
        config = ConfigDict(digits.config.to_dict())
        config.model.num_scales = scales
        trained = dataclasses.replace(digits, config=config, sde=digits.sde.with_num_scales(scales))
        assembly.plan(trained, nfe=12, alpha="tune", check=False, **options)
        reference = next(plan for label, plan in plans.items() if not label.startswith("trying"))
        assert (reference.sampler.predictor, reference.nfe) == ("dpmpp_2m", min(scales, 40))
        assert reference.preconditioner.is_identity and reference.sampler.prior == "matched"
        plans.clear()


@pytest.mark.parametrize(
    "options, match",
    [
        ({"predictor": "spectral", "grid": "edm", "prior": "matched"}, "no noise|stochasticity"),
        ({"predictor": "reverse_diffusion", "freq_mask_path": "missing.npy"}, "missing.npy"),
    ],
)
def test_tune_refuses_before_anything_is_drawn(digits, monkeypatch, options, match):
    monkeypatch.setattr(assembly, "draw", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises(PdsError, match=match):
        assembly.plan(digits, nfe=10, alpha="tune", corrector="none", **options)


def test_auto_without_an_evaluation_is_refused(digits):
    with pytest.raises(PdsError, match="no evaluation is left"):
        assembly.plan(digits, speed_up=10_000, predictor="auto")


def test_without_a_predictor_the_grid_is_that_of_the_corrector(digits):
    options = {"predictor": "none", "corrector": "langevin", "nfe": 5}
    even, edm = (assembly.plan(digits, grid=grid, **options).sampler.times for grid in ("uniform", "edm"))
    assert not np.allclose(even, edm)


def test_tune_chooses_the_gain_and_raises_errors_other_than_divergence(digits, monkeypatch):
    with pytest.raises(PdsError, match="gain=1.37: alpha=tune chooses the gain"):
        assembly.plan(digits, nfe=40, alpha="tune", filters="flat", gain=1.37, **FEW)

    real = assembly.draw

    def draw(*args, error, label, **words):
        if label.startswith("trying"):
            raise error
        return real(*args, label=label, **words)

    errors = {
        "do not fit": parallel.OutOfMemory("64 images do not fit"),
        "diverges with every alpha": SamplingDiverged("1"),
    }
    for match, error in errors.items():
        monkeypatch.setattr(assembly, "draw", functools.partial(draw, error=error))
        with pytest.raises(PdsError, match=match):
            assembly.plan(digits, nfe=40, alpha="tune", **FEW)


def test_masks_are_of_the_recipe_that_is_given_and_auto_turns_those_of_the_configuration_off(digits, mask, monkeypatch):
    plan = assembly.plan(digits, nfe=40, freq_mask_path=mask, recipe="eccv2022", check=False, **FEW)
    assert plan.preconditioner.describe()["recipe"] == "eccv2022"
    monkeypatch.setattr(choose, "measure", lambda *_: MEASURED)
    monkeypatch.setattr(choose, "remembered", lambda name, key, measure: measure())
    config = ConfigDict(digits.config.to_dict())
    config.pds.freq_mask_path = mask
    assert assembly.plan(dataclasses.replace(digits, config=config), nfe=9, predictor="auto").preconditioner.is_identity


def test_a_trajectory_is_of_all_batches_and_what_does_nothing_in_a_drawing_is_refused(digits):
    plan = assembly.plan(digits, nfe=4, predictor="ddim", corrector="none")
    drawn = assembly.draw(digits, plan, range(3), batch_size=2, trajectory_every=2)
    assert [step for step, *_ in drawn.trajectory] == [2, 4] and drawn.trajectory[0][1] > drawn.trajectory[1][1]
    np.testing.assert_array_equal(drawn.trajectory[-1][2], drawn.images)
    with pytest.raises(PdsError, match="labels and given both"):
        assembly.draw(digits, plan, [0], given=lambda seeds: (None, digits.score_fn), labels=[99])
    with pytest.raises(PdsError, match="trajectory_every=2: method 'ode' has no steps"):
        assembly.draw(digits, assembly.plan(digits, method="ode"), [0], trajectory_every=2)
