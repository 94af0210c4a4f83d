"""``--mode=eval``: loss, bits per dimension and sample quality of checkpoints, as config.eval says.

    WORKDIR/eval/results.md, results.json     the table
    WORKDIR/eval/reference.npz                statistics of the training images, where --ref names no file
    WORKDIR/eval/ckpt_N/loss.json, bpd.json, figures.json, samples/

Each of these files is written whole or not at all; what is there is not computed again, and the images and batches of a
figure that was interrupted are kept too. Another setting in the same folder is refused.

Several processes with a coordinator share all long work: the images of every batch of loss and bits/dim, the seeds of
the samples, and blocks of images for their features; config.eval.batch_size is what they do at once, together. The
first process decides what is there already and writes the results; the others get them from it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pds_jax import assembly, checkpoints, likelihood, parallel, processes, train_config
from pds_jax.bench import quality
from pds_jax.cli import sample as sampling_job
from pds_jax.cli.options import RunOptions
from pds_jax.data import arrays, datasets
from pds_jax.io import files
from pds_jax.io.manifest import plain
from pds_jax.io.npy import read_npz
from pds_jax.io.progress import Bar
from pds_jax.keys import make_key
from pds_jax.metrics import evaluation, image_sets
from pds_jax.metrics.extractors import Extractor, get_extractor
from pds_jax.metrics.reference import Reference, load_reference, save_reference
from pds_jax.metrics.streaming import BLOCK
from pds_jax.score_fn import ModelScore
from pds_jax.types import PdsError

_ENDLESS = 4096  # images of a data set without end
_PROBED = 64  # images that stand for a data set in its identity
_REPEATS = {"train": 1, "test": 5}  # passes of bits/dim, as in score_sde
_EPS = 1e-5  # of the likelihood's ODE
_KID_SUBSET = 1000
# By data set; Inception for every other.
EXTRACTORS = {"fashion": "fashion", "landscapes": "landscapes", "digits": "digits", "photos": "patches"}


def evaluate(options: RunOptions) -> list[dict[str, Any]]:
    """Evaluate the checkpoints config.eval.begin_ckpt … end_ckpt of the training in workdir, or one checkpoint.

    Returns:
      One row of figures a checkpoint.

    Raises:
      PdsError: anything that cannot be done, before long work starts; or another evaluation in the folder.
    """
    if options.shard != (0, 1):
        raise PdsError("--mode=eval has no shards; sample with --mode=sample and evaluate with scripts/fid.py")
    folder = options.workdir / (options.eval_folder or "eval")
    config = options.configuration()
    found = candidates(config, options)
    found = processes.from_process_zero(lambda: found)  # a training that goes on may save another in between
    rows: list[dict[str, Any]] = []
    for number, (label, place) in enumerate(found):
        trained = assembly.load(place, config, use_ema=not options.raw_weights, dtype=options.dtype)
        job = Job(trained, folder, f"ckpt_{label}", options)
        if number == 0:
            job.check()
        rows.append({"checkpoint": label, **job.run()})
        processes.from_process_zero(functools.partial(_write, folder, trained, rows))
    if processes.is_first_process():
        print(f"\n{table(rows)}\nResults: {folder / 'results.json'}, {folder / 'results.md'}")
    return rows


def candidates(config: ConfigDict | None, options: RunOptions) -> list[tuple[str, str]]:
    """(label, place) of each checkpoint to evaluate; checkpoint n of a training is its state at step n·snapshot_freq.

    Raises:
      PdsError: there are none in the range.
    """
    if options.checkpoint:
        return [(pathlib.Path(options.checkpoint).stem, options.checkpoint)]
    place = options.workdir / "checkpoints"
    if not place.is_dir():
        raise PdsError(f"{options.workdir} holds no training (no {place}); give --checkpoint, or another --workdir")
    states = checkpoints.TrainingFolder(place, create=False)
    steps = states.steps()
    states.close()
    if config is None:
        config = checkpoints.read_config(options.workdir / checkpoints.CONFIG)
    numbers = {-(-step // max(config.training.snapshot_freq, 1)): step for step in steps}
    if not numbers:
        raise PdsError(f"{place} holds no snapshot yet; one is saved every config.training.snapshot_freq steps")
    begin, end = config.eval.begin_ckpt, config.eval.end_ckpt
    chosen = {number: step for number, step in numbers.items() if begin <= number <= end}
    if not chosen:
        there = ", ".join(f"{number} (step {step})" for number, step in numbers.items())
        raise PdsError(
            f"{place} has no checkpoint from config.eval.begin_ckpt={begin} to end_ckpt={end}; there: {there}. Give "
            "--config.eval.begin_ckpt=… and --config.eval.end_ckpt=…"
        )
    missing = sorted(set(range(begin, min(end, max(numbers)) + 1)) - set(chosen))
    if missing:
        print(f"not there, skipped: checkpoints {missing}")
    return [(str(number), str(place / str(step))) for number, step in sorted(chosen.items())]


@dataclasses.dataclass(frozen=True)
class Job:
    """The evaluation of one checkpoint, in a folder of that name in the evaluation's folder."""

    trained: assembly.Trained
    folder: pathlib.Path
    name: str
    options: RunOptions

    @property
    def settings(self) -> ConfigDict:
        """The section eval of the configuration."""
        return self.trained.config.eval

    @functools.cached_property
    def training_images(self) -> SourceImages:
        """Those that are compared with where no --ref is given."""
        return training_images(self.trained.config)

    def check(self) -> None:
        """Find out what would fail later, in all processes together.

        Raises:
          PdsError: nothing to do, an unknown data set, no Inception weights, a reference that does not fit, …
        """
        processes.check_on_all_processes(self._check)
        if self.settings.enable_sampling:
            plan = self._plan()
            if sampling_job.is_together(plan) and processes.process_share()[1] > 1:
                size = self._samples_at_once(plan)
                processes.check_on_all_processes(lambda: parallel.check_divides(size, "norm=batch: images of a batch"))

    def _check(self) -> None:
        settings = self.settings
        if not (settings.enable_loss or settings.enable_bpd or settings.enable_sampling):
            raise PdsError("nothing to evaluate: set config.eval.enable_loss, enable_bpd or enable_sampling")
        if settings.batch_size < 1 or settings.num_samples < 2:
            raise PdsError(
                f"config.eval.batch_size={settings.batch_size} must be at least 1 and num_samples="
                f"{settings.num_samples} at least 2"
            )
        if settings.bpd_dataset.lower() not in _REPEATS:
            raise PdsError(f"config.eval.bpd_dataset={settings.bpd_dataset!r}: use one of {list(_REPEATS)}")
        self._check_flags()
        if settings.enable_loss and not isinstance(self.trained.score_fn, ModelScore):
            raise PdsError(
                f"the training loss of {self.trained.name}, a network of another program, is not known; add "
                "--config.eval.enable_loss=false"
            )
        if settings.enable_bpd and self.trained.num_classes and not self.trained.config.model.get("label_dropout", 0):
            raise PdsError(
                f"bits/dim need a score without labels, which {self.trained.name} was not trained to give: "
                "leave config.eval.enable_bpd off"
            )
        if settings.enable_sampling:
            # First, for it needs files that the user has to bring.
            self._judge()
        if settings.enable_loss:
            self._data("test")
        if settings.enable_bpd:
            self._likelihood()
            self._data(settings.bpd_dataset.lower())

    def _check_flags(self) -> None:
        """Refuse a bad batch size, and flags of what is not evaluated."""
        settings, options = self.settings, self.options
        if options.batch_size is not None and options.batch_size < 1:
            raise PdsError(f"--batch_size={options.batch_size}: use at least 1")
        if not settings.enable_sampling:
            judging = ("extractor", "inception_weights", "ref", "metrics", "allow_fewer", "batch_size")
            given = [name for name in judging if getattr(options, name)]
            given += ["radius" if name == "r" else name for name in options.sampler.given()]
            if given:
                raise PdsError(
                    f"--{given[0]} has no effect here: config.eval.enable_sampling is off; leave it out, or add "
                    "--config.eval.enable_sampling=true"
                )
        if options.eval_images is not None and not (settings.enable_loss or settings.enable_bpd):
            raise PdsError(
                "--eval_images has no effect here: it limits the images of loss and bits/dim, and "
                "config.eval.enable_loss and enable_bpd are off; leave it out, or set config.eval.num_samples"
            )

    def run(self) -> dict[str, Any]:
        """All figures that the configuration asks for, by name."""
        figures: dict[str, Any] = {}
        if self.settings.enable_loss:
            figures |= self._once("loss.json", self._loss_identity(), self._loss)
        if self.settings.enable_bpd:
            figures |= self._once("bpd.json", self._bpd_identity(), self._bpd)
        if self.settings.enable_sampling:
            figures |= self._quality()
        return figures

    def _once(self, name: str, identity: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result from its file, or computed and put there; the first process's in all."""
        path = self.folder / self.name / name
        if self.options.plugin:
            identity = {**identity, "plugin": [dataclasses.asdict(plugin) for plugin in self.options.plugin]}
        identity = plain({**self.trained.identity, "precision": self.options.precision, **identity})
        stored = processes.from_process_zero(lambda: _stored_result(path, identity))
        if stored is not None:
            return stored
        result = plain(compute())

        def keep() -> dict[str, Any]:
            files.write_json(path, {"identity": identity, "result": result})
            return result

        return processes.from_process_zero(keep)

    def _data(self, split: str) -> tuple[datasets.Source, int]:
        """The data set, and how many of its images count."""
        source = datasets.get_source(self.trained.config, split)
        most = self.options.eval_images
        count = (source.size or _ENDLESS) if most is None else min(most, source.size or most)
        if count < 1:
            raise PdsError(f"--eval_images={most}: use at least 1")
        return source, count

    def _batches(self, source: datasets.Source, count: int) -> Iterator[np.ndarray]:
        return datasets.iterate(source, min(self.settings.batch_size, count), count)

    def _drawn_from(self, source: datasets.Source, count: int) -> dict[str, Any]:
        """The images and the seed of the noise."""
        return {"data": SourceImages(source, count).identity, "images": count, "seed": self.trained.config.seed}

    # --- loss

    def _loss_identity(self) -> dict[str, Any]:
        source, count = self._data("test")
        return {**self._drawn_from(source, count), "training": self.trained.config.training.to_dict()}

    def _loss(self) -> dict[str, Any]:
        config, score_fn = self.trained.config, self.trained.score_fn
        assert isinstance(score_fn, ModelScore)  # what assembly.load makes
        source, count = self._data("test")
        sde, statistics = self.trained.sde, self.trained.statistics
        loss_fn = train_config.get_loss_fn(config, sde, score_fn.model, statistics, train=False)

        def each(params: Any, batch: Any) -> Any:
            # One image at a time, so that the mean knows nothing of batches.
            return jax.vmap(lambda key, x: loss_fn(key[None], params, x[None]))(*batch)

        compute, scaler = parallel.data_parallel_everywhere(each, score_fn.params), datasets.get_data_scaler(config)
        key, parts, start = make_key(config.seed), [], 0
        with _bar("loss", count) as bar:
            for images in self._batches(source, count):
                keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(start, start + len(images)))
                parts.append(compute((keys, jnp.asarray(scaler(images)))))
                start += len(images)
                bar.advance(len(images))
        values = np.concatenate(parts).astype(np.float64)
        return {"loss": float(values.mean()), "loss_std_err": _std_err(values), "loss_images": count}

    # --- bits per dimension

    def _bpd_identity(self) -> dict[str, Any]:
        split = self.settings.bpd_dataset.lower()
        source, count = self._data(split)
        return {**self._drawn_from(source, count), "repeats": _REPEATS[split], "eps": _EPS}

    def _bpd_origin(self) -> str:
        """All that decides the stored batches."""
        return f"{self._bpd_identity()} {self.options.precision} {plain(self.trained.identity)}"

    def _likelihood(self) -> likelihood.Likelihood:
        return likelihood.get_likelihood_fn(
            self.trained.sde, datasets.get_data_inverse_scaler(self.trained.config), eps=_EPS
        )

    def _bpd(self) -> dict[str, Any]:
        split = self.settings.bpd_dataset.lower()
        source, count = self._data(split)
        with _bar("bits/dim", count * _REPEATS[split]) as bar:
            found = likelihood.evaluate_bpd(
                self._likelihood(),
                self.trained.score_fn,
                lambda: self._batches(source, count),
                make_key(self.trained.config.seed),
                scaler=datasets.get_data_scaler(self.trained.config),
                repeats=_REPEATS[split],
                data_parallel=parallel.data_parallel_everywhere,
                done=StoredArrays(self.folder / self.name / "bpd", self._bpd_origin()),
                progress=bar.advance,
            )
        return {
            "bpd": found.mean,
            "bpd_std_err": found.std_err,
            "bpd_per_repeat": found.per_repeat.tolist(),
            "bpd_images": count,
            "bpd_nfe": found.nfe,
        }

    # --- samples

    def _plan(self) -> assembly.Plan:
        return sampling_job.plan(self.trained, self.options)

    def _samples_at_once(self, plan: assembly.Plan) -> int:
        """Images that a process makes at once; in norm mode "batch" that all make."""
        if self.options.batch_size is not None:
            return self.options.batch_size
        size = min(self.settings.batch_size, self.settings.num_samples)
        return size if sampling_job.is_together(plan) else _share(size)

    def _judge(self) -> tuple[Extractor, Reference | None, list[str]]:
        """The extractor, the reference if it is a file, and the figures wanted."""
        options, dataset = self.options, self.trained.config.data.dataset
        name = options.extractor or EXTRACTORS.get(dataset, "inception")
        if options.extractor is None and name == "inception" and self.trained.shape[2] != 3:
            raise PdsError(
                f"FID's Inception network takes 3 channels, but this model's images have {self.trained.shape[2]}; use "
                "--extractor=pixels, or --config.eval.enable_sampling=False for loss and bits/dim alone"
            )
        if options.inception_weights and name != "inception":
            raise PdsError(f"--inception_weights has no effect here: the extractor is {name!r}; leave it out")
        words = {"weights": options.inception_weights} if name == "inception" else {}
        try:
            extractor = get_extractor(name, **words)
        except PdsError as error:
            raise PdsError(
                f"FID needs an extractor: {error} (here: --inception_weights=FILE). Loss and bits/dim need none: "
                "--config.eval.enable_sampling=False"
            ) from error
        extractor.check_shape(self.trained.shape, f"the model {self.trained.name}")
        reference = load_reference(options.ref) if options.ref else None
        has_features = reference is None or reference.features is not None
        wanted = ["fid", *(["kid"] if has_features else []), *(["is"] if name != "patches" else [])]
        metrics = list(options.metrics or wanted)
        if reference is None:
            stored_reference(self.training_images, extractor, self.folder)
        else:
            reference.check(extractor, self.trained.shape)
            _ = reference.gaussian
        count = self.settings.num_samples
        allow_fewer = options.allow_fewer or name != "inception"
        rows = len(reference.features) if reference is not None and reference.features is not None else count
        evaluation.check_request(
            count,
            metrics,
            reference or Reference(np.zeros(1), np.eye(1), count, {}, np.zeros((count, 1), np.float32)),
            allow_fewer=allow_fewer,
            subset_size=min(_KID_SUBSET, count, rows),
        )
        return extractor.on_devices(parallel.data_parallel), reference, metrics

    def _quality(self) -> dict[str, Any]:
        count = self.settings.num_samples
        extractor, reference, metrics = self._judge()
        plan, labels = self._plan(), self.trained.default_labels
        identity = {
            "extractor": extractor.identity,
            "metrics": metrics,
            "samples": count,
            "ref": self.options.ref and files.sha256(self.options.ref),
            **({"data": self.training_images.identity} if reference is None else {}),
            **({"labels": labels} if labels else {}),
            **plan.describe(),
        }

        def compute() -> dict[str, Any]:
            against = reference or training_reference(
                self.training_images, extractor, self.folder, metrics, batch_size=self.settings.batch_size
            )
            batching = dataclasses.replace(
                sampling_job.batching_of(self.options), batch_size=self._samples_at_once(plan)
            )
            made = sampling_job.draw_to_folder(
                self.trained,
                plan,
                range(count),
                self.folder / self.name / "samples",
                batching,
                labels=labels,
                identity={"labels": labels} if labels else None,
            )
            processes.wait_for_all("samples made")
            samples = image_sets.select(image_sets.open_images(made.folder), range(count))
            rows = count if against.features is None else len(against.features)
            figures = evaluation.evaluate(
                samples,
                against,
                extractor,
                metrics=metrics,
                allow_fewer=True,  # asked in _judge
                batch_size=_share(min(self.settings.batch_size, BLOCK)),
                folder=self.folder / "unfinished",
                subset_size=min(_KID_SUBSET, count, rows),
            )
            return {**figures, "extractor": extractor.name, "nfe": plan.nfe, "N": plan.N, "alpha": plan.alpha}

        return self._once("figures.json", identity, compute)


def training_images(config: ConfigDict) -> SourceImages:
    """The training images that a configuration names; 4096 of a data set without end."""
    source = datasets.get_source(config, "train")
    return SourceImages(source, source.size or _ENDLESS)


def stored_reference(training: SourceImages, extractor: Extractor, folder: pathlib.Path) -> Reference | None:
    """The statistics in FOLDER/reference.npz, None where there are none.

    Raises:
      PdsError: the file there is of other features, of images of another size or of another data set.
    """
    path = folder / "reference.npz"
    if not path.exists():
        return None
    stored = load_reference(path)
    stored.check(extractor, training.shape)
    now = training.identity
    # Files of earlier versions have no probe.
    there = stored.provenance.get("data") or {"images": stored.provenance.get("images"), "count": stored.count}
    for key, new in now.items():
        if key in there and there[key] != new:
            raise PdsError(
                f"{path} is of other training images: {key} was {there[key]!r} there and is {new!r} now; choose "
                "another --eval_folder, or delete the file to make it again"
            )
    return stored


def training_reference(
    training: SourceImages, extractor: Extractor, folder: pathlib.Path, metrics: Sequence[str], *, batch_size: int
) -> Reference:
    """Statistics of training images, made once per folder.

    Args:
      training: the images, see :func:`training_images`.
      extractor: of the features.
      folder: gets reference.npz.
      metrics: of which kid, pr and dc need the features themselves.
      batch_size: images at once, in all processes together.

    Raises:
      PdsError: the file there is of other features or images.
    """
    path = folder / "reference.npz"
    if processes.from_process_zero(path.exists):
        stored = stored_reference(training, extractor, folder)
        assert stored is not None
        return stored
    made = evaluation.make_reference(
        training,
        extractor,
        keep_features=bool({"kid", "pr", "dc"} & set(metrics)),
        batch_size=_share(min(batch_size, BLOCK)),
        folder=folder / "unfinished",
    )
    made = dataclasses.replace(made, provenance={**made.provenance, "data": training.identity})
    processes.from_process_zero(lambda: save_reference(path, made))
    return made


def _share(size: int) -> int:
    """How many of the images of all processes are one's own."""
    return -(-size // processes.process_share()[1])


@dataclasses.dataclass(frozen=True)
class SourceImages:
    """A data set as images to be judged, by the one uint8 rule.

    Attributes:
      source: the data set.
      count: how many of its images.
      positions: which; None for the first ``count``.
    """

    source: datasets.Source
    count: int
    positions: Sequence[int] | None = None

    @property
    def name(self) -> str:
        """For messages and provenance."""
        return f"the data set {self.source.name}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.source.shape
        return height, width, channels

    @property
    def record(self) -> dict[str, Any]:
        """What was read and what was skipped, for provenance."""
        return getattr(self.source, "record", {"data_set": self.source.name})

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Name, number, and the SHA-256 of a few images: what tells another data set, without reading all of it."""
        some = np.linspace(0, len(self) - 1, min(len(self), _PROBED)).astype(int).tolist()
        probe = hashlib.sha256(b"".join(self.keys(some))).hexdigest()
        return {"images": self.name, "count": len(self), "probe_sha256": probe}

    @property
    def seeds(self) -> Sequence[int]:
        """The index of each image."""
        return range(self.count) if self.positions is None else self.positions

    def __len__(self) -> int:
        return len(self.seeds)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """The images (b, H, W, C), uint8."""
        return arrays.to_bytes(self.source.images(np.asarray([self.seeds[index] for index in indices])))

    def keys(self, indices: Sequence[int]) -> list[bytes]:
        """SHA-256 of shape and pixels."""
        return image_sets.ArrayImages(self.name, self.images(indices)).keys(range(len(indices)))

    def take(self, positions: Sequence[int]) -> SourceImages:
        """Some of the images."""
        return dataclasses.replace(self, positions=[self.seeds[position] for position in positions])


class StoredArrays(collections.UserDict[str, np.ndarray]):
    """Float64 arrays by name, kept in a folder; those of another origin, or damaged, are not there.

    All processes hold what the first one found; it alone writes.
    """

    def __init__(self, folder: pathlib.Path, origin: str):
        """Use a folder; ``origin`` is all that decides the arrays besides their name."""
        super().__init__()
        self.folder, self.origin = folder, origin
        paths = sorted(folder.glob("*.npz"))
        found = processes.from_process_zero(lambda: {path.stem: self._read(path) for path in paths})
        self.data = {name: np.asarray(rows, np.float64) for name, rows in found.items() if rows is not None}

    def _read(self, path: pathlib.Path) -> list[Any] | None:
        try:
            stored = read_npz(path)
        except PdsError:
            return None
        return stored["array"].tolist() if str(stored.get("origin")) == self.origin else None

    def __setitem__(self, name: str, array: np.ndarray) -> None:
        self.data[name] = array
        if processes.is_first_process():
            path = self.folder / f"{name}.npz"
            files.atomic_write(path, lambda file: np.savez(file, array=array, origin=self.origin))


_COLUMNS = {
    "checkpoint": "checkpoint",
    "loss": "loss",
    "bpd": "bits/dim",
    "fid": "FID",
    "kid": "KID",
    "is": "IS",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "n": "images",
    "nfe": "NFE",
}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of the figures, one line a checkpoint, and the notes that belong to them."""
    names = {name: head for name, head in _COLUMNS.items() if any(name in row for row in rows)}
    other = {row["extractor"] for row in rows if row.get("extractor", "inception") != "inception"}
    if "fid" in names and other:  # nobody is to take it for the papers' figure
        names["fid"] = f"FID ({', '.join(sorted(other))} features)"
    text = quality.markdown([{head: _cell(row, name) for name, head in names.items()} for row in rows])
    notes = dict.fromkeys(note for row in rows for note in row.get("notes", ()))
    return text + "".join(f"\nNote: {note}" for note in notes) + ("\n" if notes else "")


def _cell(row: Mapping[str, Any], name: str) -> Any:
    error = row.get(f"{name}_std_err")
    if name in row and isinstance(error, float):
        return f"{row[name]:.4g} ± {error:.2g}"
    return row.get(name, "")


def _write(folder: pathlib.Path, trained: assembly.Trained, rows: Sequence[Mapping[str, Any]]) -> None:
    dataset = trained.config.data.dataset
    files.write_json(folder / "results.json", {"dataset": dataset, "rows": plain(list(rows))})
    files.atomic_write(folder / "results.md", lambda file: file.write(table(rows).encode()))


def _bar(label: str, total: int) -> Bar:
    bar = Bar(label, "image", silent=not processes.is_first_process())
    bar.start(total)
    return bar


def _stored_result(path: pathlib.Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in a file, None where there is none."""
    if not path.exists():
        return None
    stored = files.read_json(path)
    if stored.get("identity") != identity:
        raise PdsError(
            f"{path} is the result of another setting ({_difference(stored.get('identity'), identity)}); "
            "choose another --eval_folder"
        )
    return stored["result"]


def _difference(old: Any, new: Mapping[str, Any]) -> str:
    old = old if isinstance(old, dict) else {}
    name = next(name for name in sorted(set(old) | set(new)) if old.get(name) != new.get(name))
    return f"{name} was {old.get(name)!r}, is {new.get(name)!r}"


def _std_err(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
