"""The log of a training: the progress bar, log.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pds_jax import parallel, processes
from pds_jax.io.progress import Bar

OnLog = Callable[[int, dict[str, float]], None]  # (step, values of the line of log.jsonl)


class Log:
    """Losses on the screen, in log.jsonl and in TensorBoard; finds the first loss that is not finite.

    A line of log.jsonl holds step, loss (the mean since the last line), steps_per_second and, every
    config.training.eval_freq steps, eval_loss.
    """

    def __init__(self, workdir: pathlib.Path, step: int, total: int, on_log: OnLog | None = None):
        """Open the log of a run of `total` steps, of which `step` are done."""
        self._pending: list[tuple[int, Any]] = []
        self._recent: list[float] = []
        self._eval: tuple[int, Any] | None = None
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
                f"the loss is {host[bad[0]]} at step {first + int(bad[0])}: lower optim.lr, or check the training "
                "images for NaN or a wrong range; states saved before this step are kept"
            )
        self._recent += host.tolist()
        self.step = first + len(host)
        self._bar.advance(len(host))

    def add_eval(self, step: int, losses: Any) -> None:
        """Note the evaluation loss (D,) after ``step`` steps, for the next line."""
        self._eval = step, losses

    def check(self) -> None:
        """Read every loss so far.

        Raises:
          FloatingPointError: one is not finite.
        """
        while self._pending:
            self._take()

    def write(self) -> None:
        """Write the mean loss since the last line, and the evaluation loss if there is a new one."""
        self.check()
        if not self._recent:
            return
        now = time.monotonic()
        rate = (self.step - self._last) / max(now - self._clock, 1e-9)
        values = {"loss": float(np.mean(self._recent)), "steps_per_second": rate, **self._eval_loss()}
        if self._file is not None and self._board is not None:
            line = {"step": self.step, **{name: float(f"{value:.8g}") for name, value in values.items()}}
            self._file.write(json.dumps(line) + "\n")
            for name, value in values.items():
                self._board.add_scalar(name, value, self.step)
        if self._on_log is not None and processes.is_first_process():
            self._on_log(self.step, values)
        self._bar.note(loss=f"{values['loss']:.4f}")
        self._recent, self._clock, self._last = [], now, self.step

    def _eval_loss(self) -> dict[str, float]:
        if self._eval is None:
            return {}
        (step, losses), self._eval = self._eval, None
        value = float(parallel.unreplicate(losses))
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the evaluation loss is {value} at step {step}: lower optim.lr, or check the test images for NaN or a "
                "wrong range; states saved before this step are kept"
            )
        return {"eval_loss": value}

    def close(self) -> None:
        """Flush and close."""
        self._bar.close()
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def _board(folder: pathlib.Path) -> Any:
    import tensorboardX

    return tensorboardX.SummaryWriter(str(folder))
