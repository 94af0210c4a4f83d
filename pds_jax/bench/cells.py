"""Cells of a table: settings chosen on seeds that are not reported, blocks of seeds that are, each cell a file.

All settings of a cell draw the same images' seeds; the one whose images have the least distance is kept, and blocks of
other seeds are evaluated separately. Finished work is kept: an interrupted run resumes, also within a cell,
and more blocks add to what is there.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pds_jax import assembly
from pds_jax.bench import quality
from pds_jax.io import files
from pds_jax.io.manifest import plain
from pds_jax.parallel import OutOfMemory
from pds_jax.types import PdsError

CHOOSING_SEED, CHOOSING_IMAGES = 2**30, 256
CRITERION = "frechet"


class OutOfTime(Exception):
    """The time of a run is up."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What one cell asks for.

    Attributes:
      key: name of its file.
      facts: what its row says of it.
      settings: to choose from; where there is one, nothing is chosen.
      images: a block.
      plan: setting -> sampler; PdsError where it cannot be had.
      told: (setting, plan) -> additional columns of the row.
      decides: what else decides its figures: where it changes, the cell is measured anew.
    """

    key: str
    facts: Mapping[str, Any]
    settings: Sequence[Any]
    images: int
    plan: Callable[[Any], assembly.Plan]
    told: Callable[[Any, assembly.Plan], Mapping[str, Any]] = lambda setting, plan: {}
    decides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cells:
    """A model, its judge and a folder of cells.

    Attributes:
      blocks: of seeds that are reported.
      choosing: images for each setting.
      batch_size: most images at once; there are never more than ``choosing``.
      minutes: after which nothing is begun; None for no end.
    """

    trained: assembly.Trained
    judge: quality.Judge
    folder: pathlib.Path
    blocks: int = 2
    choosing: int = CHOOSING_IMAGES
    batch_size: int = 256
    minutes: float | None = None
    began: float = dataclasses.field(default_factory=lambda: time.monotonic())

    def measure(self, work: Work) -> dict[str, Any]:
        """A cell as far as the time goes: what was chosen and the scores of each block, or why there are none."""
        config = self.trained.config
        identity = plain({
            **self.trained.identity, "sampling": config.sampling.to_dict(), "pds": config.pds.to_dict(),
            "images": work.images, "choosing": self.choosing, "candidates": work.settings, **work.decides,
            **self.judge.identity,
        })  # fmt: skip
        path = self.folder / "cells" / f"{work.key}.json"
        row = files.read_json(path) if path.exists() else {}
        if row.get("identity") != identity:
            row = {"identity": identity, **work.facts, "blocks": []}
        if "refused" in row:
            return plain(row)
        try:
            for _ in self._pieces(work, row):
                files.write_json(path, plain(row))
        except OutOfMemory:
            raise
        except PdsError as error:
            row["refused"] = str(error)
            files.write_json(path, plain(row))
        except OutOfTime:
            pass
        return plain(row)

    def _pieces(self, work: Work, row: dict[str, Any]) -> Iterable[None]:
        """Do what is missing of a row, stopping after every piece."""
        if "value" not in row:
            yield from self._choose(work, row)
        setting = next(setting for setting in work.settings if plain(setting) == plain(row["value"]))
        made = None
        for block in range(len(row["blocks"]), self.blocks):
            self._check_time()
            if made is None:
                made = work.plan(setting)
                row |= {"nfe": made.nfe, **work.told(setting, made)}
            start, seeds = time.monotonic(), range(block * work.images, (block + 1) * work.images)
            row["blocks"].append({**self._scores(work, made, seeds), "seconds": time.monotonic() - start})
            yield

    def _choose(self, work: Work, row: dict[str, Any]) -> Iterable[None]:
        """Enter the setting with the least distance on images of seeds that no block uses."""
        some = list(work.settings)
        tried = row.setdefault("tried", [])
        for setting in some[len(tried) :] if len(some) > 1 else ():
            self._check_time()
            try:
                seeds = range(CHOOSING_SEED, CHOOSING_SEED + self.choosing)
                tried.append({"setting": setting, CRITERION: self._scores(work, work.plan(setting), seeds)[CRITERION]})
            except OutOfMemory:
                raise
            except PdsError as error:
                tried.append({"setting": setting, "refused": str(error)})
            yield
        found = [(one[CRITERION], index) for index, one in enumerate(tried) if CRITERION in one]
        if tried and not found:
            raise PdsError(f"every setting is refused: {tried[-1]['refused']}")
        row["value"] = some[min(found)[1] if found else 0]

    def _scores(self, work: Work, made: assembly.Plan, seeds: range) -> dict[str, float]:
        size = min(self.batch_size, self.choosing, work.images)  # one size, one program
        labels = self.trained.default_labels
        drawn = assembly.draw(self.trained, made, seeds, batch_size=size, label=work.key, labels=labels)
        return self.judge(drawn.images)

    def _check_time(self) -> None:
        if self.minutes is not None and time.monotonic() - self.began >= 60 * self.minutes:
            raise OutOfTime

    def floor(self, counts: Iterable[int]) -> dict[int, list[dict[str, float]]]:
        """Scores of as many real images, blocks for each number of images; {} where the data are not there."""
        path = self.folder / "floor.json"
        stored = files.read_json(path) if path.exists() else {}
        judge = dict(self.judge.identity)
        stored = stored if stored.get("judge", {}) == judge else {}
        found = {int(count): rows for count, rows in stored.items() if count.isdigit()}
        for count in sorted(set(counts)):
            try:
                for block in range(len(found.setdefault(count, [])), self.blocks):
                    found[count].append(self.judge(self.judge.real(count, block * count)))
            except PdsError as error:
                print(f"no floor of real images: {error}")
                return {}
        files.write_json(path, plain({**found, **({"judge": judge} if judge else {})}))
        return {count: found[count][: self.blocks] for count in sorted(set(counts))}


def run(cells: Cells, works: Iterable[Work], write: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """Measure the cells and call ``write`` with the rows so far after each; returns those that have something."""
    rows: list[dict[str, Any]] = []
    for work in works:
        row = cells.measure(work)
        if row["blocks"] or "refused" in row:
            rows.append(row)
            write(rows)
    return rows


def spread(blocks: Sequence[Mapping[str, float]], name: str) -> str:
    """A score of all blocks: its mean, and the least to the largest."""
    values = [block[name] for block in blocks]
    return f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else f"{values[0]:.3g}"


def score_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of all scores, as they come."""
    return list(dict.fromkeys(name for row in rows for block in row["blocks"] for name in block if name != "seconds"))


def number(value: Any) -> str:
    """A strength for a table; none is empty."""
    return "" if value in (None, math.inf, "inf") else f"{value:.3g}"
