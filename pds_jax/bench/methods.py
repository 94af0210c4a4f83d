"""The samplers of the few-step table, and the settings that each of them is given to choose from.

Every sampler that has something to choose has :data:`TRIALS` settings, published ones as many as those of this
project; the first is the default of its source. Noise levels among them are in units of the data: a unit is the data's
deviation over 0.5, EDM's.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from pds_jax import alpha as alpha_lib
from pds_jax import assembly, choose, pilot, teacher
from pds_jax.bench.ablation import ALPHAS, FLATS
from pds_jax.predictors import PREDICTORS
from pds_jax.spectral import plane_mean
from pds_jax.types import PdsError, unknown_name

TRIALS = 6
GROUPS = ("papers", "baselines", "PDS", "spectral", "auto")
PUBLISHED = ("papers", "baselines")  # what is published without PDS
Setting = dict[str, Any]

_MATCHED: Setting = {"corrector": "none", "prior": "matched"}
_EDM: Setting = {**_MATCHED, "grid": "edm"}
_GRIDS: tuple[Setting, ...] = (
    {"grid": "edm"}, {"grid": "edm", "rho": 5.0}, {"grid": "edm", "rho": 3.0},
    {"grid": "log_sigma"}, {"grid": "quadratic"}, {"grid": "spectrum"},
)  # fmt: skip
_TWO_GRIDS: tuple[Setting, ...] = ({"grid": "edm"}, {"grid": "log_sigma"})
_RD: Setting = {"predictor": "reverse_diffusion", "corrector": "none"}
_PC: Setting = {"predictor": "reverse_diffusion", "corrector": "langevin"}
_EXACT_PC: Setting = {"predictor": "reverse_diffusion", "corrector": "langevin_exact"}
_SDE_DPM: Setting = {**_EDM, "predictor": "sde_dpmpp_2m"}
_EXACT: Setting = {**_SDE_DPM, "variant": "exact"}
_SPECTRAL: Setting = {**_EDM, "predictor": "spectral"}


@dataclasses.dataclass(frozen=True)
class Scales:
    """Noise levels of the data that settings are made of.

    Attributes:
      unit: the data's deviation over 0.5, what EDM's and Restart's published levels are in.
      highest: √max P, the level at which the data's strongest mode is as strong as the noise.
      colours: whether the statistics hold the colours.
    """

    unit: float
    highest: float
    colours: bool

    @classmethod
    def of(cls, trained: assembly.Trained) -> Scales:
        """Those of a model.

        Raises:
          PdsError: it has no statistics.
        """
        stats = trained.statistics
        if stats is None:
            raise PdsError(
                f"{trained.name} has no statistics, which half of the table's samplers need: make them with "
                "scripts/make_statistics.py and give --statistics=FILE.npz"
            )
        power = jnp.asarray(stats.to_range(trained.config.data.centered)[1], jnp.float32)
        deviation = math.sqrt(float(plane_mean(power, trained.shape[1])))
        return cls(deviation / 0.5, math.sqrt(float(power.max())), stats.cross is not None)


@dataclasses.dataclass(frozen=True)
class Method:
    """A sampler of the table.

    Attributes:
      name: of its rows.
      group: one of :data:`GROUPS`.
      settings: scales -> options of ``assembly.plan``, one to choose from a setting.
    """

    name: str
    group: str
    settings: Callable[[Scales], Sequence[Setting]]


def _same(*settings: Setting) -> Callable[[Scales], Sequence[Setting]]:
    return lambda scales: settings


def _each(base: Setting, *choices: Sequence[Setting]) -> Callable[[Scales], Sequence[Setting]]:
    """All combinations of choices, the last changing fastest."""
    return _same(*({**base, **{k: v for one in some for k, v in one.items()}} for some in itertools.product(*choices)))


def _values(name: str, values: Sequence[Any]) -> list[Setting]:
    return [{name: value} for value in values]


def _flat(base: Setting) -> Callable[[Scales], Sequence[Setting]]:
    return _each({**base, "filters": "flat"}, _values("gain", FLATS))


def _pds(base: Setting) -> Callable[[Scales], Sequence[Setting]]:
    return _each(base, _values("alpha", ALPHAS))


def _churned(scales: Scales) -> list[Setting]:
    """EDM's tables 5 of CIFAR-10 (VE, VP) and ImageNet first."""
    some = (
        (80, 0.05, 1, 1.007), (30, 0.01, 1, 1.007), (40, 0.05, 50, 1.003),
        (10, 0, math.inf, 1), (5, 0, math.inf, 1), (10, 0.05, 50, 1.003),
    )  # fmt: skip
    names = ("churn", "churn_min", "churn_max", "churn_noise")
    base = {**_EDM, "predictor": "edm"}
    levels = [(churn, low * scales.unit, high * scales.unit, noise) for churn, low, high, noise in some]
    return [{**base, **{name: float(value) for name, value in zip(names, one, strict=True)}} for one in levels]


def _restarted(scales: Scales) -> list[Setting]:
    """Restart's interval of CIFAR-10 first; then those that leave more of few evaluations to the steps."""
    some = (
        ((3, 2, 0.06, 0.3),), ((2, 1, 0.06, 0.3),), ((2, 2, 0.06, 0.3),), ((3, 1, 0.59, 1.09),),
        ((3, 1, 0.06, 0.3), (3, 1, 0.59, 1.09)), ((2, 1, 1.09, 1.92),),
    )  # fmt: skip
    base, u = {**_EDM, "predictor": "restart"}, scales.unit
    return [{**base, "restarts": tuple((n, k, a * u, b * u) for n, k, a, b in one)} for one in some]


def _spectral(scales: Scales) -> list[Setting]:
    others = _values("colours", (True, False)) if scales.colours else list(_TWO_GRIDS)
    return list(_each(_SPECTRAL, others, _values("kappa", (0.4, 0.2, 1.0)))(scales))


def _head_start(scales: Scales) -> list[Setting]:
    starts = [factor * scales.highest for factor in (1.2, 2.4, 4.8)]
    base = {**_SPECTRAL, "colours": scales.colours}
    return list(_each(base, _values("head_start", starts), _values("kappa", (0.2, 0.4)))(scales))


def _piloted(scales: Scales) -> list[Setting]:
    base = {**_SPECTRAL, "colours": scales.colours, "pilot_gain": True}
    starts = _values("head_start", (None, 1.2 * scales.highest))
    return list(_each(base, starts, _values("kappa", (0.4, 0.2, 1.0)))(scales))


def _corrected(scales: Scales) -> list[Setting]:
    base = {**_EDM, "predictor": "spectral_ddim", "corrector": "langevin_exact"}
    levels = _values("corrector_levels", (None, (0.0, 2 * scales.unit)))
    return list(_each(base, levels, _values("snr", (0.16, 0.5, 1.0)))(scales))


_KAPPAS = _values("kappa", (0.4, 1.0))
METHODS: tuple[Method, ...] = (
    Method("auto", "auto", _same({"predictor": "auto"})),
    Method("RD", "papers", _same(_RD)),
    Method("RD + flat M", "PDS", _flat(_RD)),
    Method("RD + PDS", "PDS", _pds(_RD)),
    Method("PC", "papers", _each(_PC, _values("snr", (0.16, 0.08, 0.12, 0.2, 0.25, 0.3)))),
    Method("PC + flat M", "PDS", _flat(_PC)),
    Method("PC + PDS", "PDS", _pds(_PC)),
    Method("DDIM", "baselines", _each({**_MATCHED, "predictor": "ddim"}, _GRIDS)),
    Method("Heun", "baselines", _each({**_MATCHED, "predictor": "heun"}, _GRIDS)),
    Method("DPM++(2M)", "baselines", _each({**_MATCHED, "predictor": "dpmpp_2m"}, _GRIDS)),
    Method("DPM++(2M) standard prior", "baselines",
           _each({"corrector": "none", "predictor": "dpmpp_2m"}, _GRIDS)),
    Method("DPM++(3M)", "baselines",
           _each({**_MATCHED, "predictor": "dpmpp_3m"}, _GRIDS[:4:3] + _GRIDS[5:], _values("exact", (False, True)))),
    Method("UniPC", "baselines",
           _each({**_MATCHED, "predictor": "unipc"}, _TWO_GRIDS,
                 ({"order": 3}, {"order": 2}, {"order": 2, "form": "bh1"}))),
    Method("iPNDM", "baselines",
           _each({**_MATCHED, "predictor": "ipndm"}, _values("order", (3, 2)), _GRIDS[:4:3] + _GRIDS[4:5])),
    Method("iPNDM GITS", "baselines",
           _each({**_MATCHED, "predictor": "ipndm", "grid": "gits"}, _values("order", (3, 2)),
                 _values("coeff", (1.15, 1.05, 1.3)))),
    Method("iPNDM variable steps", "baselines",
           _each({**_MATCHED, "predictor": "ipndm_v"}, _values("order", (3, 2)), _GRIDS[:4:3] + _GRIDS[4:5])),
    Method("DEIS", "baselines",
           _each({**_MATCHED, "predictor": "deis"}, _values("order", (3, 2)), _GRIDS[:4:3] + _GRIDS[4:5])),
    Method("SDE-DPM++(2M)", "baselines", _each({**_MATCHED, "predictor": "sde_dpmpp_2m"}, _GRIDS)),
    Method("ER-SDE", "baselines",
           _each({**_MATCHED, "predictor": "er_sde"}, _values("scale", (7, 5, 4)), _TWO_GRIDS)),
    Method("SA-Solver", "baselines",
           _each({**_MATCHED, "predictor": "sa"}, _values("tau", (1.0, 0.6, 0.3)), _TWO_GRIDS)),
    Method("EDM churn", "baselines", _churned),
    Method("Restart", "baselines", _restarted),
    Method("SDE-DPM++(2M) exact + flat M", "PDS", _flat(_EXACT)),
    Method("SDE-DPM++(2M) exact + PDS", "PDS", _pds(_EXACT)),
    Method("RD + alpha=tune", "PDS", _same({**_RD, "alpha": "tune"})),
    Method("SDE-DPM++(2M) exact + alpha=tune", "PDS", _same({**_EXACT, "alpha": "tune"})),
    Method("spectral", "spectral", _spectral),
    Method("spectral + head start", "spectral", _head_start),
    Method("spectral + pilot gain", "spectral", _piloted),
    Method("spectral SDE", "spectral", _each(_SPECTRAL, _values("stochasticity", (1.0, 0.3, 0.1)), _KAPPAS)),
    Method("spectral M", "spectral",
           _each({**_SPECTRAL, "stochasticity": "M"}, _values("alpha", (4.0, 8.0, 20.0)), _KAPPAS)),
    Method("spectral P=0", "spectral",
           _each({**_MATCHED, "predictor": "spectral", "spectrum": 0.0}, _values("kappa", (0.4, 0.7, 1.0)),
                 _TWO_GRIDS)),
    Method("spectral DDIM", "spectral", _each({**_MATCHED, "predictor": "spectral_ddim"}, _GRIDS)),
    Method("spectral DPM++(2M)", "spectral", _each({**_MATCHED, "predictor": "spectral_dpmpp_2m"}, _GRIDS)),
    Method("spectral ancestral", "spectral", _each({**_MATCHED, "predictor": "spectral_ancestral"}, _GRIDS)),
    Method("RD + exact Langevin", "spectral", _each(_EXACT_PC, _values("snr", (0.16, 0.08, 0.3, 0.5, 0.8, 1.2)))),
    Method("RD + PDS + exact Langevin", "spectral", _pds(_EXACT_PC)),
    Method("spectral DDIM + exact Langevin", "spectral", _corrected),
)  # fmt: skip


def named(names: Sequence[str]) -> list[Method]:
    """Methods by name or group, in the order of the table; names of registered predictors make methods too.

    Raises:
      PdsError: no name, or an unknown one.
    """
    if not names:
        raise PdsError(f"no samplers: use some of all, {', '.join(GROUPS)}, or their names")
    found = [method for method in METHODS if method.name in names or method.group in names or "all" in names]
    known = {"all", *GROUPS, *(method.name for method in METHODS)}
    for name in names:
        if name not in known and name in PREDICTORS:
            found += _registered(name)
        elif name not in known:
            raise PdsError(unknown_name("sampler", name, ["all", *GROUPS, *(m.name for m in METHODS)]))
    return found


def _registered(name: str) -> Iterator[Method]:
    """A predictor by its own name, with M where it takes one."""
    base = {"predictor": name, "corrector": "none"}
    yield Method(name, "baselines", _same(base))
    if PREDICTORS[name].uses_M:
        yield Method(f"{name} + flat M", "PDS", _flat(base))
        yield Method(f"{name} + PDS", "PDS", _pds(base))


def trials(method: Method, scales: Scales, count: int = TRIALS) -> list[Setting]:
    """The first settings of a method, at most ``count``."""
    return list(method.settings(scales))[:count]


def is_fitted(made: assembly.Plan) -> bool:
    """Whether the sampler is made to have the data's spectrum, so that its spectrum error says nothing new."""
    options = made.config.sampling
    inside = any(step.needs_statistics for step in made.sampler.kinds) and options.get("spectrum", 1.0) != 0
    return bool(inside or options.get("pilot_gain"))


def pilot_evaluations(setting: Setting, made: assembly.Plan) -> int:
    """Evaluations spent on choosing and measuring before the first image, however many images follow."""
    count = choose.IMAGES * choose.LEVELS if setting.get("predictor") == "auto" else 0
    count += pilot.IMAGES * int(made.nfe or 0) if made.config.sampling.get("pilot_gain") else 0
    count += teacher.EVALUATIONS if setting.get("grid") == "gits" else 0
    if setting.get("alpha") == "tune":
        count += alpha_lib.MOST_TRIALS * assembly.TUNE_IMAGES * int(made.nfe or 0)
        count += assembly.TUNE_IMAGES * alpha_lib.TUNE_NFE
    return count


def described(setting: Setting) -> str:
    """The options of a setting that settings differ in, for a table."""
    hidden = ("predictor", "corrector", "prior", "filters", "variant", "pilot_gain")
    shown = {name: value for name, value in setting.items() if name not in hidden and value not in (None, False)}
    return ", ".join(f"{name} {_short(value)}" for name, value in shown.items() if (name, value) != ("grid", "edm"))


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(_short(one) for one in value) + ")"
    return f"{value:.3g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
