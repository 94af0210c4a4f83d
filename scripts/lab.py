"""Every sampler against the number of score evaluations, on problems whose score is known exactly.

    python scripts/lab.py --quick                 a few cells, under two minutes
    python scripts/lab.py --out=docs/lab          everything; resumes where it was stopped
    python scripts/lab.py --minutes=60            as much as an hour allows, then tables of what is there

Cells run in order of importance: few evaluations and plain PC at 2000 first, then the sweep of alpha, then by cost.
Writes rows.csv (a row a cell and seed), table.md and figures. The last line on stdout is JSON.
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from absl import flags

from pds_jax import sampling
from pds_jax.alpha import choose
from pds_jax.bench import figures, lab
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import scripts
from pds_jax.io import files
from pds_jax.metrics.simple import power_spectrum
from pds_jax.plugins import load_plugin
from pds_jax.types import PdsError

_QUICK = flags.DEFINE_bool("quick", False, "Few cells, one seed, into runs/lab_quick: under two minutes on two cores.")
_OUT = flags.DEFINE_string("out", None, "Folder of results; by default runs/lab, or runs/lab_quick.")
_PROBLEMS = flags.DEFINE_list("problems", None, "Of gaussian, mixture, empirical.")
_METHODS = flags.DEFINE_list(
    "methods", None, "Samplers: of pds_jax.bench.lab.METHODS, by default all, or names of predictors, a plugin's too."
)
_PLUGIN = flags.DEFINE_multi_string("plugin", [], "Python file that registers predictors; may be repeated.")
_NFES = flags.DEFINE_list("nfe", None, "Score evaluations per image.")
_SAMPLES = flags.DEFINE_integer("samples", None, "Samples a seed.", 2)
_SEEDS = flags.DEFINE_integer("repeats", None, "Independent sets of samples (seeds).", 1)
_IMAGES = flags.DEFINE_integer("images", 500, "Photograph crops of the empirical law.", 2)
_MINUTES = flags.DEFINE_float("minutes", None, "Begin no new cell after this time; a later run goes on from there.", 0)
_SWEEP = flags.DEFINE_list("sweep", None, "Iterations N at which alpha is swept and tuned.")

_SWEPT = ("pc", "rd")
_FULL: dict[str, Any] = {
    "problems": ["empirical", "gaussian", "mixture"],
    "methods": list(lab.METHODS),
    "nfe": [10, 15, 20, 30, 40, 66, 100, 200, 400, 1000, 2000],
    "samples": 512,
    "seeds": 3,
    "sweep": [40, 66, 100, 200],
}
_SMALL: dict[str, Any] = {
    "problems": ["empirical"],
    "methods": ["pc", "rd", "rd_pds_5", "dpmpp_2m", "dpmpp_2m_matched"],
    "nfe": [20, 40, 2000],
    "samples": 128,
    "seeds": 1,
    "sweep": [],
}
_SHOWN = ("pc", "rd", "rd_pds_5", "dpmpp_2m_matched", "spectral_ancestral")  # spectra at 20 evaluations
_CURVES = (
    "pc", "pc_pds_5", "rd", "rd_pds_5", "ddim", "dpmpp_2m", "dpmpp_2m_matched", "spectral_dpmpp_2m",
    "sde_dpmpp_2m_matched", "spectral_ancestral",
)  # fmt: skip
_STAGES = (40, 200, 400, math.inf)  # evaluations up to which a stage goes; pc goes to the end in the first
_FEW = 200  # in --quick only pc runs with more evaluations
_GOAL = 2000

Row = dict[str, Any]


def settings() -> dict[str, Any]:
    """What the flags ask for, over the defaults."""
    chosen = dict(_SMALL if _QUICK.value else _FULL)
    given = {"problems": _PROBLEMS, "methods": _METHODS, "nfe": _NFES, "samples": _SAMPLES, "seeds": _SEEDS}
    chosen |= {name: flag.value for name, flag in {**given, "sweep": _SWEEP}.items() if flag.value is not None}
    for name in ("nfe", "sweep"):
        try:
            chosen[name] = [int(n) for n in chosen[name]]
        except ValueError as error:
            raise PdsError(f"--{name} takes whole numbers: {error}") from error
    plugins = sorted(load_plugin(plugin).sha256 for plugin in _PLUGIN.value)
    for name in chosen["methods"]:
        lab.get_method(name)  # refuses an unknown name
    return chosen | {"images": _IMAGES.value, "plugins": plugins}


class Book:
    """Rows that are done, kept in a file so that a stopped run goes on; a cell counts once it has all its seeds.

    Raises:
      PdsError: the file is of other settings or plugins, or it is damaged.
    """

    def __init__(self, folder: pathlib.Path, about: dict[str, Any]):
        self.path = folder / "rows.jsonl"
        self.rows: list[Row] = []
        self.about = {key: about[key] for key in ("samples", "seeds", "images")}
        self.about |= {"plugins": about["plugins"]} if about.get("plugins") else {}
        if self.path.exists():
            first, *rows = self._read() or [self.about]
            if first != self.about:
                raise PdsError(f"{self.path} holds a run with {first}, this one has {self.about}; choose another --out")
            self.rows = whole_cells(rows, about["seeds"])
        else:
            self.add([])

    def _read(self) -> list[Any]:
        """The lines without the last one where that is half-written."""
        found, lines = [], self.path.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number < len(lines):
                    raise PdsError(
                        f"{self.path}, line {number} is no JSON: {error}; delete that line, or choose another --out"
                    ) from error
        return found

    def cell(self, **key: Any) -> list[Row]:
        """The rows of a cell."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in key.items())]

    def add(self, rows: Iterable[Row]) -> None:
        """Keep rows."""
        self.rows += rows
        text = "".join(json.dumps(line) + "\n" for line in (self.about, *self.rows))
        files.atomic_write(self.path, lambda file: file.write(text.encode()))


def whole_cells(rows: Iterable[Row], seeds: int) -> list[Row]:
    """The rows of cells that have all seeds, or one row for all of them, whose seed is -1."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["problem"], row["sampler"], row["nfe"]), []).append(row)
    done = (set(range(seeds)), {-1})
    return [row for cell in cells.values() if {row["seed"] for row in cell} in done for row in cell]


def measure(problem: lab.Problem, about: dict[str, Any], images: np.ndarray) -> list[dict[str, float]]:
    """Scores of every seed's share of the images."""
    return [problem.scores(part) for part in np.split(images, about["seeds"])]


def draw(problem: lab.Problem, sampler: Any, about: dict[str, Any]) -> tuple[np.ndarray, float]:
    """A batch a seed, which fits a core's cache better than all in one; an image depends on its own key alone."""
    start = time.perf_counter()
    batches = []
    for seed in range(about["seeds"]):
        keys = sampling.image_keys(range(seed * about["samples"], (seed + 1) * about["samples"]))
        batches.append(np.asarray(sampling.run(sampler, keys, problem.law).x))
    return np.concatenate(batches), time.perf_counter() - start


def run_cell(
    book: Book, problem: lab.Problem, about: dict[str, Any], name: str, nfe: int, alpha: float | None = None
) -> None:
    """One sampler at one number of evaluations, unless it is done; a setting that diverges is recorded as such."""
    method = lab.get_method(name)
    label = name if alpha is None else f"{name}@{alpha:g}"
    key = {"problem": problem.name, "sampler": label, "nfe": nfe}
    if book.cell(**key):
        return
    iterations = method.iterations(nfe)
    try:
        sampler = lab.get_sampler(problem, method, iterations, alpha)
        images, seconds = draw(problem, sampler, about)
    except PdsError as error:
        book.add([{**key, "N": iterations, "seed": -1, "refused": str(error)}])
        return
    extra = {"N": iterations, "true_nfe": int(sampler.nfe), "seconds": round(seconds, 3)}
    rows = [{**key, **extra, "seed": s, **scores} for s, scores in enumerate(measure(problem, about, images))]
    book.add(rows)
    print(f"{problem.name:10s} {label:22s} NFE {nfe:5d}  frechet {rows[0]['frechet']:.4g}  {seconds:.1f} s", flush=True)


def run_floor(book: Book, problem: lab.Problem, about: dict[str, Any]) -> None:
    """What every metric says of exact samples."""
    if not book.cell(problem=problem.name, sampler="exact"):
        floor = problem.exact(about["seeds"] * about["samples"], 1)
        base = {"problem": problem.name, "sampler": "exact", "nfe": 0}
        book.add({**base, "seed": s, **scores} for s, scores in enumerate(measure(problem, about, floor)))


def jobs(book: Book, problems: list[lab.Problem], about: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """Every cell as something to call, those that tell most first."""
    for problem in problems:
        yield functools.partial(run_floor, book, problem, about)
    previous = 0.0
    for stage in _STAGES:
        for problem in problems:
            for nfe, name in itertools.product(about["nfe"], about["methods"]):
                first = stage == _STAGES[0] and name == "pc" and nfe == _GOAL
                wanted = name == "pc" or nfe <= _FEW or not _QUICK.value
                if (previous < nfe <= stage or first) and wanted and lab.get_method(name).iterations(nfe) >= 2:
                    yield functools.partial(run_cell, book, problem, about, name, nfe)
        if stage == _STAGES[0]:
            (swept,) = [problem for problem in problems if problem.name == main_problem(about)]
            for n, name in itertools.product(about["sweep"], _SWEPT):
                yield from sweep_jobs(book, swept, about, name, n)
        previous = stage


def sweep_jobs(
    book: Book, problem: lab.Problem, about: dict[str, Any], name: str, n: int
) -> Iterator[Callable[[], None]]:
    """One sampler with N = n: every alpha, alpha=auto, and the alpha that tuning chooses."""
    nfe = evaluations(name, n)
    for alpha in lab.candidates(problem, lab.get_method(name), n):
        yield functools.partial(run_cell, book, problem, about, name, nfe, alpha)
    yield functools.partial(run_cell, book, problem, about, f"{name}_pds_auto", nfe)
    yield functools.partial(run_tune, book, problem, name, n)


def run_tune(book: Book, problem: lab.Problem, name: str, n: int) -> None:
    """The alpha that a few samples choose, unless it is known."""
    key = {"problem": problem.name, "sampler": f"{name}_tune", "nfe": evaluations(name, n)}
    if not book.cell(**key):
        errors = lab.tune_errors(problem, lab.get_method(name), n)
        tried = {f"{alpha:g}": round(error, 5) for alpha, error in errors.items()}
        book.add([{**key, "N": n, "seed": -1, "alpha": choose(errors), "tried": tried}])


def evaluations(name: str, n: int) -> int:
    """Score evaluations of n iterations of a swept sampler."""
    return n * (2 if name == "pc" else 1)


def main_problem(about: dict[str, Any]) -> str:
    """The problem that is swept and reported: the photographs where they are among those asked for."""
    return "empirical" if "empirical" in about["problems"] else about["problems"][-1]


def mean_of(book: Book, metric: str = "frechet", **key: Any) -> tuple[float, float]:
    """Mean and standard deviation over seeds; infinity where a setting was refused."""
    values = [row[metric] for row in book.cell(**key) if metric in row]
    return (float(np.mean(values)), float(np.std(values))) if values else (math.inf, 0.0)


def summary(book: Book, problem: str, about: dict[str, Any]) -> dict[str, Any]:
    """The figures that the last line of output reports, all Fréchet distances."""
    at: Callable[[str, int], float] = lambda s, n: mean_of(book, problem=problem, sampler=s, nfe=n)[0]  # noqa: E731
    floor = mean_of(book, problem=problem, sampler="exact", nfe=0)[0]
    pc2000, spread = mean_of(book, problem=problem, sampler="pc", nfe=2000)
    match = {}
    for name in about["methods"]:
        good = [nfe for nfe in about["nfe"] if at(name, nfe) <= pc2000]
        match[name] = min(good) if good and math.isfinite(pc2000) else None
    best = {}
    for nfe in about["nfe"]:
        name = min(about["methods"], key=lambda name: at(name, nfe))
        if math.isfinite(at(name, nfe)):
            best[nfe] = {"sampler": name, "value": at(name, nfe), "floor": floor}
    pc = {nfe: at("pc", nfe) for nfe in about["nfe"]}
    gain = at("dpmpp_2m", 20) / at("dpmpp_2m_matched", 20)
    return {
        "pc2000": {"value": pc2000, "sd": spread, "floor": floor} if math.isfinite(pc2000) else None,
        "nfe_to_match_pc2000": match,
        "pc_best": {"nfe": min(pc, key=lambda nfe: pc[nfe]), "value": min(pc.values())} if match.get("pc") else None,
        "best_at": best,
        "matched_prior_gain_at_20": gain if math.isfinite(gain) else None,
        "alpha_auto_over_best": {name: ratios(book, problem, name, about["sweep"], "auto") for name in _SWEPT},
        "alpha_tune_over_best": {name: ratios(book, problem, name, about["sweep"], "tune") for name in _SWEPT},
    }


def ratios(book: Book, problem: str, name: str, sweep: list[int], how: str) -> dict[int, float]:
    """Fréchet distance with alpha=auto or alpha=tune over that with the best alpha of the sweep, per N."""
    found = {}
    for n in sweep:
        nfe = evaluations(name, n)
        swept = {a: mean_of(book, problem=problem, sampler=f"{name}@{a:g}", nfe=nfe)[0] for a in lab.ALPHAS}
        if how == "auto":
            value = mean_of(book, problem=problem, sampler=f"{name}_pds_auto", nfe=nfe)[0]
        else:
            rows = book.cell(problem=problem, sampler=f"{name}_tune", nfe=nfe)
            value = swept[rows[0]["alpha"]] if rows else math.inf
        if math.isfinite(value):
            found[n] = value / min(swept.values())
    return found


def write_csv(book: Book, path: pathlib.Path) -> None:
    """All rows as one table."""
    chosen = ["alpha", "tried", "refused"]
    columns = ["problem", "sampler", "nfe", "true_nfe", "N", "seed", *lab.METRICS, "seconds", *chosen]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in book.rows:
        writer.writerow({key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()})
    files.atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def write_table(book: Book, path: pathlib.Path, about: dict[str, Any]) -> None:
    """Fréchet distance and spectrum error, mean ± sd over seeds, a row a sampler and a column an NFE."""
    text = "# Samplers with exact scores\n\nMade by `python scripts/lab.py`: "
    text += f"{about['samples']} samples, {about['seeds']} seeds, mean ± standard deviation over the seeds. "
    text += "– is a cell that was refused (its N is too small for its M) or not run.\n"
    for problem in about["problems"]:
        for metric in ("frechet", "spectrum_error"):
            floor = mean_of(book, metric, problem=problem, sampler="exact", nfe=0)
            text += f"\n## {problem}: {metric} (exact samples: {floor[0]:.3g} ± {floor[1]:.1g})\n\n"
            text += "| sampler | " + " | ".join(f"{n} NFE" for n in about["nfe"]) + " |\n"
            text += "|---" * (len(about["nfe"]) + 1) + "|\n"
            for name in about["methods"]:
                cells = [mean_of(book, metric, problem=problem, sampler=name, nfe=n) for n in about["nfe"]]
                shown = [f"{m:.3g} ± {s:.1g}" if math.isfinite(m) else "–" for m, s in cells]
                text += f"| {name} | " + " | ".join(shown) + " |\n"
    files.atomic_write(path, lambda file: file.write(text.encode()))


def draw_figures(book: Book, problem: lab.Problem, about: dict[str, Any], out: pathlib.Path) -> None:
    """Quality against NFE and spectra at 20 NFE of one problem."""
    lines = {}
    for name in [name for name in _CURVES if name in about["methods"]]:
        values = {nfe: mean_of(book, problem=problem.name, sampler=name, nfe=nfe)[0] for nfe in about["nfe"]}
        points = [(nfe, max(value, 1e-6)) for nfe, value in values.items() if math.isfinite(value)]
        if points:
            lines[name] = points
    floors = [row["frechet"] for row in book.cell(problem=problem.name, sampler="exact", nfe=0) if "frechet" in row]
    figures.curves(
        lines,
        out / f"quality_{problem.name}.png",
        xlabel="score evaluations",
        ylabel="Fréchet distance",
        floors=floors,
        title=f"{problem.name}: exact score, {about['samples']} samples, {about['seeds']} seeds",
    )
    powers = {"data": problem.stats.power}
    for name in about["methods"]:
        if name not in _SHOWN:
            continue
        sampler = lab.get_sampler(problem, lab.get_method(name), lab.get_method(name).iterations(20))
        powers[name] = power_spectrum(draw(problem, sampler, about)[0])
    figures.spectra(powers, out / f"spectra_{problem.name}.png", f"{problem.name}: power at 20 score evaluations")


def draw_toy(path: pathlib.Path) -> None:
    """Langevin paths with and without M at steps 0.1 and 1."""
    panels = {
        f"{label}, step {step:g}": lab.toy_paths(m, step, particles=20, seed=0)
        for label, m in lab.toy_preconditioners().items()
        for step in (0.1, 1.0)
    }
    figures.paths(panels, path, "Langevin dynamics on N(0, diag(1, 0.04)), 60 steps; red: where they end")


def main(argv: list[str]) -> None:
    """Run what is not done, then write tables and figures."""
    scripts.refuse_words(argv)
    use_compilation_cache(None)
    about = settings()
    out = pathlib.Path(_OUT.value or ("runs/lab_quick" if _QUICK.value else "runs/lab"))
    book = Book(out, about)
    problems = [lab.make_problem(name, about["images"]) for name in about["problems"]]
    start, limit = time.monotonic(), math.inf if _MINUTES.value is None else 60 * _MINUTES.value
    for job in jobs(book, problems, about):
        if time.monotonic() - start > limit:
            break
        job()
    write_csv(book, out / "rows.csv")
    write_table(book, out / "table.md", about)
    for problem in problems:
        draw_figures(book, problem, about, out)
    draw_toy(out / "toy.png")
    print((out / "table.md").read_text())
    print(f"rows, tables and figures are in {out}")
    print(json.dumps({"problem": main_problem(about), "out": str(out), **summary(book, main_problem(about), about)}))


if __name__ == "__main__":
    scripts.run(main)
