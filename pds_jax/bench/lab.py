"""Samplers on problems whose score is known exactly, so that the sampler alone is measured.

Three problems: a Gaussian with the spectrum of photographs, a Gaussian mixture (one component per handwritten digit),
and the empirical law of photograph crops widened by a little noise. None needs a network or a download.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import preconditioner, sampling, statistics, table
from pds_jax.alpha import TUNE_NFE, alpha_auto
from pds_jax.correctors import get_corrector
from pds_jax.data import datasets, photographs
from pds_jax.metrics import simple
from pds_jax.metrics.frechet import frechet_distance_from_features
from pds_jax.models import analytic
from pds_jax.predictors import PREDICTORS, get_predictor
from pds_jax.sde_lib import SDE, VESDE
from pds_jax.types import PdsError, unknown_name

METRICS = ("frechet", "frechet_pixels", "sliced_wasserstein", "spectrum_error")
ALPHAS = (3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0, 30.0, math.inf)
_REFERENCE = 4096
_WIDTH = 0.03


@dataclasses.dataclass(frozen=True)
class Method:
    """A sampler by its options; what is left out is the default of ``sampling.get_pc_sampler``.

    Attributes:
      predictor: name.
      corrector: name.
      alpha: strength of M: a number, or "auto"; infinity for none.
      variant: "paper" or "exact".
      prior: "standard" or "matched".
      grid: "uniform" or "edm".
    """

    predictor: str = "reverse_diffusion"
    corrector: str = "none"
    alpha: float | str = math.inf
    variant: str = "paper"
    prior: str = "standard"
    grid: str = "uniform"

    def iterations(self, nfe: int) -> int:
        """Iterations that `nfe` evaluations pay for."""
        return table.iterations(nfe, get_predictor(self.predictor), get_corrector(self.corrector))


def _few(predictor: str, **options: Any) -> Method:
    return Method(predictor, grid="edm", **options)


METHODS: dict[str, Method] = {
    "pc": Method(corrector="langevin"),
    "pc_pds_5": Method(corrector="langevin", alpha=5.0),
    "pc_pds_auto": Method(corrector="langevin", alpha="auto"),
    "rd": Method(),
    "rd_pds_5": Method(alpha=5.0),
    "rd_pds_auto": Method(alpha="auto"),
    "rd_pds_auto_exact": Method(alpha="auto", variant="exact"),
    "rd_pds_auto_matched": Method(alpha="auto", prior="matched"),
    "ancestral": Method("ancestral_sampling"),
    "spectral_ancestral": _few("spectral_ancestral", prior="matched"),
    "ddim": _few("ddim"),
    "ddim_matched": _few("ddim", prior="matched"),
    "spectral_ddim": _few("spectral_ddim", prior="matched"),
    "heun": _few("heun"),
    "heun_matched": _few("heun", prior="matched"),
    "dpmpp_2m": _few("dpmpp_2m"),
    "dpmpp_2m_matched": _few("dpmpp_2m", prior="matched"),
    "spectral_dpmpp_2m": _few("spectral_dpmpp_2m", prior="matched"),
    "sde_dpmpp_2m": _few("sde_dpmpp_2m"),
    "sde_dpmpp_2m_matched": _few("sde_dpmpp_2m", prior="matched"),
    "sde_dpmpp_2m_pds_5_exact": _few("sde_dpmpp_2m", alpha=5.0, variant="exact", prior="matched"),
}


def get_method(name: str) -> Method:
    """A method of :data:`METHODS`, or the predictor called `name`, a plugin's too, with the grid that suits it.

    Raises:
      PdsError: neither.
    """
    if name in METHODS:
        return METHODS[name]
    if name not in PREDICTORS:
        raise PdsError(unknown_name("method", name, [*METHODS, *sorted(PREDICTORS)]))
    step = PREDICTORS[name]
    prior = "matched" if step.needs_statistics else "standard"
    return Method(name, grid="edm" if step.any_grid else "uniform", prior=prior)


BASELINES = ("pc", "rd", "ancestral", "ddim", "heun", "dpmpp_2m", "sde_dpmpp_2m")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A law with its exact score, what a user would know of it, and how samples are judged.

    Attributes:
      name: which.
      law: exact score function, a pytree.
      stats: statistics of the law (for filters, matched prior and spectral samplers).
      scores: (n, H, W, C) -> metric -> value; smaller is better.
    """

    name: str
    law: Any
    stats: statistics.Statistics
    scores: Callable[[np.ndarray], dict[str, float]]

    @property
    def sde(self) -> SDE:
        """Its SDE."""
        return self.law.sde

    def exact(self, count: int, seed: int) -> np.ndarray:
        """Exact samples (count, H, W, C), other than those of the reference."""
        return np.asarray(self.law.sample(jax.random.key(1000 + seed), count))


def make_problem(name: str, images: int = 1000) -> Problem:
    """One of the three problems, under VE.

    Args:
      name: "gaussian", "mixture" or "empirical".
      images: photograph crops of the empirical law.

    Returns:
      The problem.

    Raises:
      PdsError: unknown name.
    """
    makers: dict[str, Callable[[], tuple[Any, statistics.Statistics]]] = {
        "gaussian": _gaussian,
        "mixture": _mixture,
        "empirical": functools.partial(_empirical, images),
    }
    if name not in makers:
        raise PdsError(unknown_name("problem", name, makers))
    law, stats = makers[name]()
    reference = np.asarray(law.sample(jax.random.key(0), _REFERENCE))
    return Problem(name, law, stats, _judge(reference, stats))


def get_sampler(problem: Problem, method: Method, iterations: int, alpha: float | None = None) -> Any:
    """The sampler of a method on a problem.

    Args:
      problem: the problem.
      method: the method.
      iterations: N.
      alpha: in place of the method's.

    Returns:
      The sampler of ``sampling.get_pc_sampler``.

    Raises:
      PdsError: what it refuses, for instance a setting that is certain to diverge.
    """
    sde = problem.sde.with_num_scales(iterations)
    strength = method.alpha if alpha is None else alpha
    if strength == "auto":
        strength = alpha_auto(sde, iterations, method.corrector != "none")
    eps = min(sde.default_eps * max(1000 / iterations, 1.0), 0.1) if method.grid == "uniform" else sde.default_eps
    return sampling.get_pc_sampler(
        sde,
        problem.stats.shape,
        method.predictor,
        method.corrector,
        preconditioner=preconditioner.from_statistics(problem.stats, float(strength)),
        eps=eps,
        variant=method.variant,
        prior=method.prior,
        grid=method.grid,
        statistics=problem.stats.to_range(False),
    )


def candidates(problem: Problem, method: Method, iterations: int) -> list[float]:
    """The α worth trying with N iterations: those of :data:`ALPHAS` from a third of ``alpha_auto`` on."""
    auto = alpha_auto(problem.sde, iterations, method.corrector != "none")
    return [alpha for alpha in ALPHAS if alpha >= auto / 3]


def tune_errors(problem: Problem, method: Method, iterations: int, count: int = 512) -> dict[float, float]:
    """Distance of a few samples from those of many steps for each of :func:`candidates`, for ``alpha.choose``.

    As ``assembly.tune_alpha``; the exact samples are not looked at.

    Args:
      problem: the problem.
      method: the method.
      iterations: N.
      count: samples per α, of seeds that no other run uses.

    Returns:
      α -> distance.

    Raises:
      PdsError: every α diverges.
    """
    errors: dict[float, float] = {}
    keys, others = (sampling.image_keys(range(first, first + count)) for first in (2**31, 2**31 + count))

    def sample(sampler: sampling.PCSampler, keys: Any) -> np.ndarray:
        return np.asarray(sampling.run(sampler, keys, problem.law, chunk=10_000).x)

    best = get_sampler(problem, METHODS["dpmpp_2m_matched"], TUNE_NFE)
    distance = simple.distance_from(sample(best, others))
    for alpha in candidates(problem, method, iterations):
        try:
            errors[alpha] = distance(sample(get_sampler(problem, method, iterations, alpha), keys))
        except PdsError:
            continue  # diverges: no candidate
    if not errors:
        raise PdsError(f"every alpha diverges with {iterations} iterations; use more")
    return errors


def _judge(reference: np.ndarray, stats: statistics.Statistics) -> Callable[[np.ndarray], dict[str, float]]:
    pca, conv = simple.PatchPCA.fit(reference), simple.random_conv_features(reference)
    pixels = pca.features(reference)

    def scores(images: np.ndarray) -> dict[str, float]:
        return {
            "frechet": frechet_distance_from_features(simple.random_conv_features(images), conv),
            "frechet_pixels": frechet_distance_from_features(pca.features(images), pixels),
            "sliced_wasserstein": simple.sliced_wasserstein(images, reference, projections=128),
            "spectrum_error": simple.spectrum_error(images, stats.power),
        }

    return scores


def _photographs(count: int) -> np.ndarray:
    return photographs.photos("train", 16).images(np.arange(count))


def _gaussian() -> tuple[Any, statistics.Statistics]:
    stats = statistics.compute_statistics([_photographs(4000)])
    return analytic.from_statistics(VESDE(0.01, 26.5), stats), stats


def _mixture() -> tuple[Any, statistics.Statistics]:
    images, labels = datasets.digits("train")
    classes = [images[labels == digit] for digit in range(10)]
    law = analytic.GaussianMixture.create(
        VESDE(0.01, 6.5),
        [len(members) for members in classes],
        np.stack([members.mean(axis=0) for members in classes]),
        np.stack([members.var(axis=0) for members in classes]) + _WIDTH**2,
    )
    return law, _statistics_of(law)


def _empirical(count: int) -> tuple[Any, statistics.Statistics]:
    crops = _photographs(count)
    stats = statistics.compute_statistics([crops])
    widened = dataclasses.replace(stats, power=stats.power + np.float32(_WIDTH**2))
    return analytic.from_images(VESDE(0.01, 26.5), crops, _WIDTH), widened


def _statistics_of(law: Any, count: int = 20_000) -> statistics.Statistics:
    """Statistics of samples, which unlike images may leave [0, 1]."""
    images = law.sample(jax.random.key(7), count)
    sums = statistics.accumulate(images, jnp.ones(count, jnp.float32))
    return statistics.finalize(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sums), images_sha256="")


# ---- in the plane, as the papers explain what M is for ----

_TOY_SD = np.array([1.0, 0.2], np.float32)


def toy_preconditioners() -> dict[str, preconditioner.Preconditioner]:
    """The identity, and M with the pixel filter A = (1, 0.2) on images of shape (1, 1, 2)."""
    scaled = preconditioner.Preconditioner(space=jnp.asarray(_TOY_SD.reshape(1, 1, 2)), shape=(1, 1, 2))
    return {"without M": preconditioner.identity(), "with M": scaled}


def toy_paths(
    m: preconditioner.Preconditioner,
    step: float,
    particles: int,
    seed: int,
    steps: int = 60,
    start: tuple[float, float] | None = None,
) -> np.ndarray:
    """Langevin paths x ← x + ε M Mᵀ s(x) + √(2 ε) M z on N(0, diag(1, 0.04)).

    Without M a step of 1 diverges along the narrow axis, since it exceeds twice the variance there; with M, whose pixel
    filter is the standard deviation of each axis, both axes move alike.

    Args:
      m: M on images (1, 1, 2).
      step: ε.
      particles: number of paths.
      seed: of start and noise.
      steps: number of steps.
      start: where all begin; by default each somewhere in the square from -3 to 3.

    Returns:
      (steps + 1, particles, 2).
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    anywhere = rng.uniform(-3, 3, (particles, 1, 1, 2))
    first = np.broadcast_to(anywhere if start is None else start, anywhere.shape).astype(np.float32)
    noise = rng.standard_normal((steps, particles, 1, 1, 2)).astype(np.float32)
    variance = jnp.asarray(np.square(_TOY_SD).reshape(1, 1, 1, 2))

    def advance(x: Any, z: Any) -> tuple[Any, Any]:
        x = x + step * m.gram(-x / variance) + math.sqrt(2 * step) * m.apply(z)
        return x, x

    _, after = jax.lax.scan(advance, jnp.asarray(first), jnp.asarray(noise))
    return np.concatenate([first[None], np.asarray(after)]).reshape(steps + 1, particles, 2)
