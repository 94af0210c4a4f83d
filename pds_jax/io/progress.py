"""Progress of long work: a bar that appears with the first step, and callbacks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

_LOG_SECONDS = 30.0  # between two lines in a file


class Bar:
    """A progress bar on standard error; it shows nothing until a step is done, for there is no rate before."""

    def __init__(
        self, label: str, unit: str, on_step: Callable[[int, int], None] | None = None, *, silent: bool = False
    ):
        """Prepare a bar.

        Args:
          label: what is being done.
          unit: of what is counted.
          on_step: called with (done, total) whenever the bar moves.
          silent: show nothing.
        """
        self.label, self.unit, self.on_step, self.silent = label, unit, on_step, silent
        self.done, self.total = 0, 0
        self._started = time.time()
        self._bar: Any = None

    def start(self, total: int, done: int | None = None) -> None:
        """Begin, or begin again, to count towards a total; the rate is measured from here."""
        self.total, self._started = total, time.time()
        self.done = self.done if done is None else done
        if self._bar is not None:
            self._bar.total = total

    def reach(self, done: int) -> None:
        """Note that so many steps are done."""
        if done <= self.done:
            return
        moved, self.done = done - self.done, done
        if self._bar is None and not self.silent:
            self._bar = self._made(done - moved)
        if self._bar is not None:
            self._bar.update(moved)
        if self.on_step is not None:
            self.on_step(done, self.total)

    def advance(self, count: int) -> None:
        """Note that so many more steps are done."""
        self.reach(self.done + count)

    def note(self, **values: str) -> None:
        """Show values beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix(values)

    def _made(self, before: int) -> Any:
        from tqdm import tqdm

        pause = 0.5 if sys.stderr.isatty() else _LOG_SECONDS
        options = {"total": self.total, "initial": before, "desc": self.label, "unit": self.unit}
        bar = tqdm(leave=False, mininterval=pause, delay=1e-9, **options)
        bar.start_t = bar.last_print_t = self._started
        return bar

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
