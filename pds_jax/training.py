"""Training: the loop, its log, its snapshots, and resuming."""

from __future__ import annotations

import contextlib
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from pds_jax import checkpoints, convert, losses, parallel, processes, sampling, sde_lib
from pds_jax import score_fn as score_fns
from pds_jax import statistics as stats_lib
from pds_jax.data import datasets
from pds_jax.data.shapes import image_size
from pds_jax.denoisers import PARAMETRISATIONS
from pds_jax.io import files, images, manifest
from pds_jax.io.progress import Bar
from pds_jax.keys import make_key
from pds_jax.models import create_model, init_model
from pds_jax.train_state import TrainState, create_train_state, get_optimizer, resumed_state
from pds_jax.types import Array, PdsError

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
# What a training needs of a field, and how that is said; fields that are not there are not checked.
_NEEDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "training.batch_size": (lambda n: n >= 1, "at least 1"),
    "training.n_iters": (lambda n: n >= 1, "at least 1"),
    "training.n_jitted_steps": (lambda n: n >= 1, "at least 1"),
    "optim.lr": (lambda rate: 0 < rate < math.inf, "positive and finite"),
    "optim.beta1": (lambda beta: 0 <= beta < 1, "in [0, 1)"),
    "optim.eps": (lambda eps: 0 < eps < math.inf, "positive and finite"),
    "optim.weight_decay": (lambda decay: 0 <= decay < math.inf, "0 or more, and finite"),
    "optim.warmup": (lambda steps: 0 <= steps < math.inf, "a number of steps, or 0 for no warm-up"),
    "optim.cosine_steps": (lambda steps: 0 <= steps < math.inf, "a number of steps, or 0 for no decay"),
    "optim.grad_clip": (lambda norm: norm < 0 or norm > 0, "the largest norm, or negative for no clipping"),
    "optim.amsgrad": (lambda on: not on, "False: Adam is without AMSGrad here, as in score_sde"),
    "model.ema_rate": (lambda rate: 0 <= rate < 1, "in [0, 1)"),
    "model.conv_size": (lambda size: size == 3, "3, as in score_sde: no network reads it"),
    "model.sigma_begin": (lambda sigma: sigma == 90, "90, as in score_sde: it is not read; set model.sigma_max"),
}
_ABSENT = {"data.resize": False, "data.convert_images": False, "data.range": []}


OnLog = Callable[[int, dict[str, float]], None]  # (step, loss and steps per second since the last call)


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
        if config.model.get("parametrisation") in PARAMETRISATIONS:
            raise PdsError(
                f"the configuration describes a network of another program (model.name={config.model.name!r}, "
                f"parametrisation {config.model.parametrisation!r}), which is sampled here, not trained; to train "
                "with EDM's preconditioning use parametrisation 'edm', as configs/fashion.py does"
            )
        check_fields(config)
        self.config, self.workdir = config, pathlib.Path(workdir)
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
        self._keep_config()
        self.statistics = self._statistics()
        self.sde, _ = sde_lib.get_sde(config)
        self.model = create_model(config)
        self.optimizer = get_optimizer(config)
        self.loss_fn = get_loss_fn(config, self.sde, self.model, self.statistics)
        self.key = jax.random.fold_in(make_key(config.seed), 1)
        self.meta = checkpoints.TrainingFolder(self.workdir / "checkpoints-meta", keep=2)
        self.snapshots = checkpoints.TrainingFolder(self.workdir / "checkpoints", keep=None)
        self.state = self._restore()
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        files.check_writable(self.workdir / "config.json", _STATES_AT_LEAST * state_bytes)
        self._stop = ""

    def _keep_config(self) -> None:
        path = self.workdir / "config.json"
        now = manifest.plain(self.config.to_dict())
        if path.exists():
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
        if processes.is_first_process() and not path.exists():
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
        if (self.workdir / checkpoints.CONFIG).exists():
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
                if _passed(before, step, training.log_freq):
                    log.write(training.log_freq)
                if _passed(before, step, training.snapshot_freq_for_preemption):
                    log.check()
                    self.meta.save(step, parallel.unreplicate(state))
                if _passed(before, step, training.snapshot_freq) or step == training.n_iters:
                    log.check()
                    self._snapshot(step, parallel.unreplicate(state))
            log.check()
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
        training, model = self.config.training, self.config.model
        count = min(training.n_jitted_steps, training.n_iters - step)
        seconds = []
        for _ in range(2):  # the first compiles
            start = time.monotonic()
            jax.block_until_ready(step_fn(state, self._batches(step, count), self.key))
            seconds.append(time.monotonic() - start)
        if not processes.is_first_process():
            return
        images, total = self.batch_size * count / seconds[1], self.batch_size * training.n_iters
        left = (training.n_iters - step) * seconds[1] / count
        size = self.source.size
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
        lines = (
            f"Data: {self.source.name}, {'endless' if size is None else f'{size:,}'} images {tuple(self.source.shape)}",
            f"Network: {model.name}, {parameters:,} parameters ({parameters * 4 / 1e6:.1f} MB), parametrisation "
            f"{model.get('parametrisation', 'score_sde')}, loss weighting {training.get('loss_weighting', 'sigma')}",
            f"Steps: {step:,} of {training.n_iters:,} are done, {self.batch_size} images each: {total:,} images in all"
            + ("" if size is None else f", {total / size:.1f} epochs"),
            f"Speed: {images:.3g} images a second after {seconds[0] - seconds[1]:.0f} s of compiling; so it "
            f"ends in {left / 3600:.2g} hours, {end}",
            f"Saved every {training.snapshot_freq_for_preemption:,} steps: the same command goes on after any stop",
        )
        print("\n".join(lines), flush=True)

    def _batches(self, step: int, count: int) -> np.ndarray:
        scaler = datasets.get_data_scaler(self.config)
        here = parallel.local_slice(self.batch_size)
        return parallel.split(np.stack([scaler(self.stream.batch(step + i)[here]) for i in range(count)]))

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


def check_fields(config: Any) -> None:
    """Refuse numbers that no training can have, and options that nothing reads.

    Args:
      config: with training, optim and model.

    Raises:
      PdsError: see :func:`check_loss`, or names the field, its value and what it must be.
    """
    for path, (holds, needed) in _NEEDS.items():
        section, field = path.split(".")
        if field in config[section] and not holds(config[section][field]):
            raise PdsError(f"config.{path}={config[section][field]!r} must be {needed}")
    check_loss(config)


def check_loss(config: Any) -> None:
    """Refuse a weighting or a parametrisation that the training loss does not have.

    Args:
      config: see :func:`get_loss_fn`.

    Raises:
      PdsError: an unknown weighting, two at once, or one that the discrete losses (continuous=False) do not have.
    """
    training = config.training
    weighting = training.get("loss_weighting", "sigma")
    if weighting not in ("sigma", "unit"):
        raise PdsError(f"training.loss_weighting={weighting!r} is unknown; known: sigma, unit")
    likelihood = training.get("likelihood_weighting", False)
    if likelihood and weighting != "sigma":
        raise PdsError(
            "config.training.likelihood_weighting=True and loss_weighting='unit' are two weightings: set "
            "likelihood_weighting=False or loss_weighting='sigma'"
        )
    if training.continuous:
        return
    parametrisation = config.model.get("parametrisation", "score_sde")
    for field, value, only in (
        ("training.likelihood_weighting", likelihood, False),
        ("training.loss_weighting", weighting, "sigma"),
        ("model.parametrisation", parametrisation, "score_sde"),
    ):
        if value != only:
            raise PdsError(
                f"config.{field}={value!r} needs continuous times: set config.training.continuous=True or "
                f"config.{field}={only!r}"
            )


def get_loss_fn(
    config: Any, sde: Any, model: Any, statistics: stats_lib.Statistics | None, train: bool = True
) -> losses.LossFn:
    """The training loss that a configuration describes.

    Args:
      config: with training.{continuous, reduce_mean, likelihood_weighting, loss_weighting}, model.parametrisation.
      sde: forward SDE.
      model: network.
      statistics: of the data, for the parametrisation "wiener" and loss weighting "unit".
      train: dropout on.

    Returns:
      loss_fn(keys (B,), params, batch) -> scalar.

    Raises:
      PdsError: see :func:`check_loss`; or "unit" or "wiener" without statistics.
    """
    check_loss(config)
    training = config.training
    if not training.continuous:
        get = losses.get_smld_loss_fn if training.sde.lower() == "vesde" else losses.get_ddpm_loss_fn
        return get(sde, model, train=train, reduce_mean=training.reduce_mean)
    moments = None if statistics is None else statistics.to_range(config.data.centered)
    unit = training.get("loss_weighting", "sigma") == "unit"
    weight = losses.unit_weight(sde, _output_scale(config, moments)) if unit else None
    return losses.get_sde_loss_fn(
        sde,
        model,
        train=train,
        reduce_mean=training.reduce_mean,
        continuous=True,
        likelihood_weighting=training.likelihood_weighting,
        weight=weight,
        statistics=moments,
        **score_fns.model_options(config),
    )


def _output_scale(config: Any, moments: Any) -> Callable[[Array], Array]:
    """Scale of the network's output in the denoiser, of the noise level; of "score_sde" the one of "wiener"."""
    if config.model.get("parametrisation", "score_sde") == "edm":
        return lambda level: score_fns.edm_scales(config.model.sigma_data, level)[2]
    if moments is None:
        raise PdsError("training.loss_weighting='unit' needs the statistics of the training data")
    return lambda level: score_fns.wiener_scales(moments[1], level, image_size(config)[1])[1]


class Log:
    """Losses on the screen, in log.jsonl and in TensorBoard; finds the first loss that is not finite."""

    def __init__(self, workdir: pathlib.Path, step: int, total: int, on_log: OnLog | None = None):
        """Open the log of a run of `total` steps, of which `step` are done."""
        self._pending: list[tuple[int, Any]] = []
        self._recent: list[float] = []
        silent = not processes.is_first_process()
        self._bar, self._on_log = Bar("training", "step", silent=silent), on_log
        self._bar.start(total, step)
        # Every process reads its losses, to stop at one that is no number; the first writes them.
        self._file = None if silent else open(workdir / "log.jsonl", "a", buffering=1)
        self._board = None if silent else _board(workdir / "tensorboard")
        self._clock, self._last = time.monotonic(), step
        self.step = step

    def restart(self) -> None:
        """Measure the rate from now on, compiling being over."""
        self._bar.start(self._bar.total)
        self._clock = time.monotonic()

    def add(self, first: int, step_losses: Any) -> None:
        """Note the losses (D, n) of n steps from ``first``; reads them one call later, so devices never wait."""
        self._pending.append((first, step_losses))
        while len(self._pending) > 1:
            self._take()

    def _take(self) -> None:
        first, values = self._pending.pop(0)
        host = np.asarray(parallel.unreplicate(values), np.float64)
        bad = np.flatnonzero(~np.isfinite(host))
        if bad.size:
            raise FloatingPointError(
                f"the loss is {host[bad[0]]} at step {first + int(bad[0])}; lower optim.lr or look at the data"
            )
        self._recent += host.tolist()
        self.step = first + len(host)
        self._bar.advance(len(host))

    def check(self) -> None:
        """Read every loss so far.

        Raises:
          FloatingPointError: one is not finite.
        """
        while self._pending:
            self._take()

    def write(self, every: int) -> None:
        """Write the mean loss since the last writing."""
        if not self._recent:
            return
        now = time.monotonic()
        loss = float(np.mean(self._recent))
        rate = (self.step - self._last) / max(now - self._clock, 1e-9)
        if self._file is not None and self._board is not None:
            self._file.write(f'{{"step": {self.step}, "loss": {loss:.8g}, "steps_per_second": {rate:.4g}}}\n')
            self._board.add_scalar("loss", loss, self.step)
            self._board.add_scalar("steps_per_second", rate, self.step)
        if self._on_log is not None and processes.is_first_process():
            self._on_log(self.step, {"loss": loss, "steps_per_second": rate})
        self._bar.note(loss=f"{loss:.4f}")
        self._recent, self._clock, self._last = [], now, self.step

    def close(self) -> None:
        """Flush and close."""
        self._bar.close()
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def _board(folder: pathlib.Path) -> Any:
    import tensorboardX

    return tensorboardX.SummaryWriter(str(folder))
