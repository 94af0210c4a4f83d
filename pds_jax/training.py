"""Training: the loop, its snapshots, and resuming."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from pds_jax import checkpoints, convert, parallel, processes, sampling, sde_lib
from pds_jax import score_fn as score_fns
from pds_jax import statistics as stats_lib
from pds_jax.config_defaults import complete
from pds_jax.data import datasets
from pds_jax.denoisers import PARAMETRISATIONS
from pds_jax.io import files, images, manifest
from pds_jax.keys import make_key
from pds_jax.models import create_model, init_model
from pds_jax.train_config import check_fields, get_loss_fn
from pds_jax.train_log import Log, OnLog
from pds_jax.train_state import TrainState, create_train_state, get_optimizer, resumed_state
from pds_jax.types import PdsError

SNAPSHOTS = "snapshots"  # folder of the grids; "samples" is that of --mode=sample
_STATISTICS_IMAGES = 20000
_STATES_AT_LEAST = 3  # on disk: two to resume from and a snapshot
_BEGUN = "begun_from.json"
# What a resumed run may change.
_FREE_SECTIONS = ("eval", "sampling", "pds")
_FREE_FIELDS = (
    "n_iters",
    "snapshot_freq",
    "snapshot_freq_for_preemption",
    "log_freq",
    "eval_freq",
    "snapshot_sampling",
)
_ABSENT = {"data.resize": False, "data.convert_images": False, "data.range": []}


def train(config: Any, workdir: str, checkpoint: str | None = None, *, on_log: OnLog | None = None) -> None:
    """Train the network that a configuration describes; resumes an interrupted run in ``workdir``.

    Args:
      config: see configs/.
      checkpoint: full training state of score_sde or score_sde_pytorch to start from, see
        ``convert.load_training_state``.
      workdir: folder for config.json, statistics.npz, log.jsonl, checkpoints-meta/ (for resuming), checkpoints/
        (snapshots), snapshots/ (PNG grids of samples) and TensorBoard events.
      on_log: called in the first process with each line of log.jsonl, every config.training.log_freq steps.

    Raises:
      PdsError: bad configuration, the folder holds another training, or a process that trains in it still runs.
      FloatingPointError: the loss is not finite; the message has the step.
    """
    folder = pathlib.Path(workdir)
    try:
        if (folder / checkpoints.CONFIG).exists() and processes.is_first_process():
            files.hold(folder).close()  # refused before anything is read or written
        Trainer(config, workdir, checkpoint).run(on_log)
    except OSError as error:
        raise PdsError(
            f"{error.filename or workdir}: {error.strerror or error}; free some space or choose another --workdir; the "
            "same command continues from what was saved"
        ) from error


class Trainer:
    """One training run."""

    def __init__(self, config: Any, workdir: str, checkpoint: str | None = None):
        """Build or restore everything; nothing is trained yet."""
        config = complete(config)
        if config.model.get("parametrisation") in PARAMETRISATIONS:
            raise PdsError(
                f"the configuration describes a network of another program (model.name={config.model.name!r}, "
                f"parametrisation {config.model.parametrisation!r}), which is sampled here, not trained; to train "
                "with EDM's preconditioning use parametrisation 'edm', as configs/fashion.py does"
            )
        check_fields(config)
        self.config, self.workdir = config, pathlib.Path(workdir)
        self.resumes = self._holds_states()
        self.begun = self._begun_elsewhere(checkpoint)
        self.source = datasets.get_source(config, "train")
        self.batch_size = config.training.batch_size
        parallel.check_divides(self.batch_size, "training.batch_size")
        self.stream = datasets.Stream(
            self.source,
            self.batch_size,
            config.seed,
            random_flip=config.data.random_flip,
            uniform_dequantization=config.data.uniform_dequantization,
        )
        self.sde, _ = sde_lib.get_sde(config)
        self.model = create_model(config)
        self.optimizer = get_optimizer(config)
        self.eval_stream = self._eval_stream()
        self._keep_config()
        self.statistics = self._statistics()
        self.loss_fn = get_loss_fn(config, self.sde, self.model, self.statistics)
        self.key = jax.random.fold_in(make_key(config.seed), 1)
        self.meta = checkpoints.TrainingFolder(self.workdir / "checkpoints-meta", keep=2)
        self.snapshots = checkpoints.TrainingFolder(self.workdir / "checkpoints", keep=None)
        self.state = self._restore()
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        files.check_writable(self.workdir / "config.json", _STATES_AT_LEAST * state_bytes)
        self._stop = ""

    def _eval_stream(self) -> datasets.Stream | None:
        """Batches for the evaluation loss: of the test split, or of a path's images, which have no split."""
        if self.config.training.eval_freq <= 0:
            return None
        source: datasets.Source = self.source
        if not isinstance(source, datasets.PathSource):
            try:
                source = datasets.get_source(self.config, "test")
            except PdsError as error:
                raise PdsError(
                    f"the evaluation loss needs test images: {error}; set config.training.eval_freq=0 to train "
                    "without it"
                ) from error
        return datasets.Stream(
            source,
            self.batch_size,
            self.config.seed,
            uniform_dequantization=self.config.data.uniform_dequantization,
        )

    def _holds_states(self) -> bool:
        """Whether the workdir holds a state to resume from; without one, nothing in it binds a new training."""
        folders = (self.workdir / name for name in ("checkpoints-meta", "checkpoints"))
        return any(child.name.isdigit() for folder in folders if folder.is_dir() for child in folder.iterdir())

    def _keep_config(self) -> None:
        path = self.workdir / "config.json"
        now = manifest.plain(self.config.to_dict())
        if self.resumes and path.exists():
            there = files.read_json(path)
            for section in sorted((set(there) | set(now)) - set(_FREE_SECTIONS)):
                old, new = there.get(section), now.get(section)
                if not isinstance(new, dict) and old != new:
                    raise PdsError(
                        f"{self.workdir} holds a training with {section}={old}, now it is {new}; choose another "
                        "--workdir"
                    )
                for field in sorted(set(old) | set(new)) if isinstance(old, dict) and isinstance(new, dict) else []:
                    default = _ABSENT.get(f"{section}.{field}")  # in folders of earlier versions
                    if field not in _FREE_FIELDS and old.get(field, default) != new.get(field, default):
                        raise PdsError(
                            f"{self.workdir} holds a training with {section}.{field}={old.get(field)!r}, now it is "
                            f"{new.get(field)!r}; choose another --workdir"
                        )
        processes.wait_for_all("configuration compared")
        if processes.is_first_process():
            files.write_json(path, now)

    def _statistics(self) -> stats_lib.Statistics:
        path = self.workdir / "statistics.npz"
        if processes.is_first_process() and not (self.resumes and path.exists()):
            count = min(self.source.size or _STATISTICS_IMAGES, _STATISTICS_IMAGES)
            record = getattr(self.source, "record", {"data_set": self.source.name})
            stats_lib.compute_statistics(datasets.iterate(self.source, 256, count), source=record).save(path)
        processes.wait_for_all("statistics")
        return stats_lib.load(path)

    def _restore(self) -> TrainState:
        params = init_model(jax.random.fold_in(make_key(self.config.seed), 0), self.config)
        state = create_train_state(params, self.optimizer)
        found = self.meta.restore_newest(state)
        if found is None:
            if self.begun is not None:
                return self._taken_over(self.begun)
            if (self.workdir / _BEGUN).exists():
                checkpoint = files.read_json(self.workdir / _BEGUN)["checkpoint"]
                raise PdsError(
                    f"{self.workdir} holds a training that starts from {checkpoint} and has saved no state since that "
                    f"can be read; give --checkpoint={checkpoint} again, or choose another --workdir"
                )
            return state
        print(f"resuming at step {int(found.step)} of {self.workdir}")
        return found

    def _begun_elsewhere(self, checkpoint: str | None) -> convert.TrainingState | None:
        """The state of another program to begin from, if one is given; refuses it where it would not be used."""
        record = self.workdir / _BEGUN
        if checkpoint is None:
            self._refuse_other_programs_folder()
            return None
        state = convert.load_training_state(checkpoint, self.config)
        if state.step >= self.config.training.n_iters:
            raise PdsError(
                f"{checkpoint} was saved after {state.step} steps and config.training.n_iters is "
                f"{self.config.training.n_iters}: there is nothing left to do; set --config.training.n_iters higher"
            )
        for note in state.report.notes:
            logging.info("%s: %s", checkpoint, note)
        digest = checkpoints.digest_of(state.params)
        if self.resumes:
            begun = files.read_json(record) if record.exists() else {}
            if begun.get("sha256_of_parameters") != digest:
                raise PdsError(f"{self.workdir} holds a training that did not start from {checkpoint}; choose another")
        elif processes.is_first_process():
            files.write_json(record, {"checkpoint": checkpoint, "step": state.step, "sha256_of_parameters": digest})
        return state

    def _refuse_other_programs_folder(self) -> None:
        """A workdir of score_sde must not be begun anew beside its own states."""
        if (self.workdir / checkpoints.CONFIG).exists():
            return
        for folder in ("checkpoints-meta", "checkpoints"):
            there = sorted(path for path in (self.workdir / folder).glob("checkpoint*") if path.is_file())
            if there:
                raise PdsError(
                    f"{self.workdir} holds states of another program; to go on from one, give it as --checkpoint "
                    f"({there[-1]}), else choose another --workdir"
                )

    def _taken_over(self, begun: convert.TrainingState) -> TrainState:
        logging.info("beginning at step %d of %s", begun.step, begun.report.path)
        return resumed_state(
            begun.params,
            self.optimizer,
            step=begun.step,
            ema_params=begun.ema_params,
            count=begun.count,
            mu=begun.mu,
            nu=begun.nu,
        )

    def run(self, on_log: OnLog | None = None) -> None:
        """Train to the end, or until SIGTERM or Ctrl-C, which save and return."""
        held = files.hold(self.workdir) if processes.is_first_process() else contextlib.nullcontext()
        with held, files.on_stop(lambda name: setattr(self, "_stop", name)):
            self._run(on_log)

    def _run(self, on_log: OnLog | None) -> None:
        training = self.config.training
        step_fn = parallel.make_train_step(
            self.loss_fn,
            self.optimizer,
            ema_rate=self.config.model.ema_rate,
            ema_warmup=bool(self.config.model.get("ema_warmup", False)),
        )
        eval_fn = parallel.make_eval_step(get_loss_fn(self.config, self.sde, self.model, self.statistics, train=False))
        eval_key = jax.random.fold_in(make_key(self.config.seed), 2)
        log = Log(self.workdir, int(self.state.step), training.n_iters, on_log)
        state = parallel.place_state(self.state)
        step = int(self.state.step)
        try:
            if step < training.n_iters:
                self._announce(step_fn, state, step)
                log.restart()
            while step < training.n_iters and not processes.any_process(bool(self._stop)):
                count = min(training.n_jitted_steps, training.n_iters - step)
                state, step_losses = step_fn(state, self._batches(step, count), self.key)
                before, step = step, step + count
                log.add(before, step_losses)
                if self.eval_stream is not None and _passed(before, step, training.eval_freq):
                    log.add_eval(step, eval_fn(state, self._eval_batch(step), eval_key))
                if _passed(before, step, training.log_freq):
                    log.write()
                if _passed(before, step, training.snapshot_freq_for_preemption):
                    log.check()
                    self.meta.save(step, parallel.unreplicate(state))
                if _passed(before, step, training.snapshot_freq) or step == training.n_iters:
                    log.check()
                    self._snapshot(step, parallel.unreplicate(state))
            log.write()
            self.state = parallel.unreplicate(state)
            self.meta.save(step, self.state)
        finally:
            self.meta.close()
            self.snapshots.close()
            log.close()
        if self._stop:
            print(f"stopped by {self._stop}: saved at step {step}; the same command resumes from there")

    def _announce(self, step_fn: Callable[..., Any], state: Any, step: int) -> None:
        """Print what is trained on what, how fast, until when; tries the first step twice and forgets it."""
        training, first = self.config.training, processes.is_first_process()
        if first:
            print("\n".join(self._description(step)), flush=True)
        count = min(training.n_jitted_steps, training.n_iters - step)
        seconds = []
        for _ in range(2):  # the first compiles
            start = time.monotonic()
            jax.block_until_ready(step_fn(state, self._batches(step, count), self.key))
            seconds.append(time.monotonic() - start)
        if first:
            images, left = self.batch_size * count / seconds[1], (training.n_iters - step) * seconds[1] / count
            end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
            print(
                f"Speed: {images:.3g} images per second after {seconds[0] - seconds[1]:.0f} s of compilation; "
                f"expected end in {left / 3600:.2g} hours, {end}",
                flush=True,
            )

    def _description(self, step: int) -> tuple[str, ...]:
        """What is trained on what, for how long."""
        training, model, size = self.config.training, self.config.model, self.source.size
        total = self.batch_size * training.n_iters
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        return (
            f"Data: {self.source.name}, {'endless' if size is None else f'{size:,}'} images {tuple(self.source.shape)}",
            f"Network: {model.name}, {parameters:,} parameters ({parameters * 4 / 1e6:.1f} MB), parametrisation "
            f"{model.get('parametrisation', 'score_sde')}, loss weighting {training.get('loss_weighting', 'sigma')}",
            f"Steps: {step:,} of {training.n_iters:,} are done, {self.batch_size} images each: {total:,} images in all"
            + ("" if size is None else f", {total / size:.1f} epochs"),
            f"A state is saved every {training.snapshot_freq_for_preemption:,} steps; run the same command to resume",
        )

    def _batches(self, step: int, count: int) -> np.ndarray:
        return self._split([self.stream.batch(step + i) for i in range(count)])

    def _eval_batch(self, step: int) -> np.ndarray:
        assert self.eval_stream is not None
        return self._split([self.eval_stream.batch(step // self.config.training.eval_freq)])

    def _split(self, batches: list[np.ndarray]) -> np.ndarray:
        scaler, here = datasets.get_data_scaler(self.config), parallel.local_slice(self.batch_size)
        return parallel.split(np.stack([scaler(batch[here]) for batch in batches]))

    def _snapshot(self, step: int, state: TrainState) -> None:
        self.snapshots.save(step, state)
        if not self.config.training.snapshot_sampling:
            return
        try:
            drawn = self.samples(state.ema_params)
        except (sampling.SamplingDiverged, parallel.OutOfMemory) as error:
            logging.warning("no samples at step %d: %s", step, error)
            return
        if not processes.is_first_process():
            return
        shown, scale = images.visible(drawn), images.visible_scale(drawn.shape[1])
        images.save_png(self.workdir / SNAPSHOTS / f"step_{step:07d}.png", images.grid(images.enlarge(shown, scale)))

    def samples(self, params: Any, count: int = 64, steps: int = 50) -> np.ndarray:
        """Draw images to look at, by DPM-Solver++(2M), which needs few evaluations.

        Args:
          params: averaged parameters.
          count: how many; the seeds are 0, 1, …, so that snapshots can be compared.
          steps: network evaluations per image.

        Returns:
          (count, H, W, C) float32; values can be slightly outside [0, 1].
        """
        shape = tuple(self.source.shape)
        sampler = sampling.get_pc_sampler(self.sde.with_num_scales(steps), shape, "dpmpp_2m", "none")
        score_fn = score_fns.get_score_fn(
            self.sde,
            self.model,
            params,
            continuous=self.config.training.continuous,
            statistics=self.statistics.to_range(self.config.data.centered),
            **score_fns.model_options(self.config),
            num_scales=self.config.model.num_scales,
        )
        size = min(count, self.batch_size)  # the memory of training is enough
        parts = [
            parallel.sample(sampler, sampling.image_keys(range(start, start + size)), score_fn).x
            for start in range(0, count, size)
        ]
        return np.asarray(datasets.get_data_inverse_scaler(self.config)(np.concatenate(parts)[:count]))


def _passed(before: int, after: int, every: int) -> bool:
    return every > 0 and before // every != after // every
