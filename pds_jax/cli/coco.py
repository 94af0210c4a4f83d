"""The COCO table: an image a caption at several numbers of steps, without and with PDS; FID and CLIP score.

The protocol of text-to-image papers: 30000 captions of val2014, one an image in the order of image ids, seeds by
index, guidance 7.5. The table holds no published numbers: none was at hand with its setting stated.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pds_jax import assembly, statistics
from pds_jax.bench import memory, quality
from pds_jax.cli import sample as sampling_job
from pds_jax.cli.latent import GUIDANCE, digest, text_cache
from pds_jax.data.image_files import open_images
from pds_jax.io import files
from pds_jax.io.manifest import plain
from pds_jax.latent import cost
from pds_jax.latent.captions import read_captions
from pds_jax.latent.clip_score import ClipScore, load_clip_score
from pds_jax.latent.trained import LatentModel, load
from pds_jax.types import PdsError

# Images -> figures such as {"fid": ...}.
Judge = Callable[[Any], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class CocoTable:
    """What the table holds.

    Attributes:
      nfes: network evaluations per image, guidance counting twice.
      alphas: strengths of PDS beside the rows without.
      images: captions.
      guidance: weight.
    """

    nfes: tuple[int, ...] = (20, 40, 100)
    alphas: tuple[float, ...] = (5.0, 20.0)
    images: int = 30_000
    guidance: float = GUIDANCE

    @property
    def rows(self) -> list[tuple[int, float]]:
        """(NFE, alpha) of each row."""
        return [(nfe, alpha) for nfe in self.nfes for alpha in (math.inf, *self.alphas)]


def dry_run(table: CocoTable, checkpoint: str | None, rate: float) -> dict[str, Any]:
    """What it would cost; without a checkpoint for a network of Stable Diffusion 1's size. Nothing is compiled.

    Args:
      table: the table.
      checkpoint: folder of a pipeline, or None.
      rate: floating-point operations a second.
    """
    found = cost.of_folder(checkpoint, memory.peak_bytes)
    lines: list[dict[str, Any]] = []
    for nfe, alpha in table.rows:
        operations = nfe * found.network + found.decoder
        lines.append(
            {
                "NFE": nfe,
                "alpha": "none" if math.isinf(alpha) else alpha,
                "GFLOP an evaluation": found.network / 1e9,
                "GFLOP of decoding": found.decoder / 1e9,
                "hours": operations * table.images / rate / 3600,
                "GB of PNG, at most": found.image_bytes * table.images / 1e9,
            }
        )
    print(f"{table.images} captions a row; this machine multiplies at {rate / 1e12:.3g} TFLOP/s")
    print(quality.markdown(lines))
    print(
        f"Memory: {found.weights / 2**20:.0f} MiB of weights in float32, at most {found.memory / 2**20:.0f} MiB more "
        "for an evaluation of one image with guidance"
    )
    total = {name: sum(line[name] for line in lines) for name in ("hours", "GB of PNG, at most")}
    print(f"In all: {total['hours']:.3g} hours at that rate, {total['GB of PNG, at most']:.3g} GB at most")
    return {"dry_run": True, "rows": lines, **total}


def measure(
    table: CocoTable,
    checkpoint: str,
    prompts: str,
    out: pathlib.Path,
    *,
    judge: Judge | None = None,
    statistics_file: str | None = None,
    clip: str | None = None,
) -> list[dict[str, Any]]:
    """Make and judge every row; images and rows that are there are not made again.

    Args:
      table: the table.
      checkpoint: folder of the pipeline.
      prompts: file of captions, at least as many as images.
      out: folder of images and rows.
      judge: of a set of images, for FID; None leaves it out.
      statistics_file: of latents, for PDS.
      clip: folder of a CLIPModel, for the CLIP score; None leaves it out.

    Raises:
      PdsError: too few captions, missing statistics, or what sampling refuses.
    """
    captions = read_captions(prompts)
    if len(captions) < table.images:
        raise PdsError(f"{prompts} holds {len(captions)} captions, the table wants {table.images}; give --images")
    stats = None if statistics_file is None else statistics.load(statistics_file)
    model, scorer = load(checkpoint, statistics=stats), None if clip is None else load_clip_score(clip)
    given = model.given(captions.__getitem__, guidance=table.guidance, cache=text_cache())
    rows = []
    for nfe, alpha in table.rows:
        plan = assembly.plan(model.trained, nfe=nfe, alpha=alpha, guidance=table.guidance)
        rows.append(_row(table, model, plan, given, captions, out, judge, scorer))
    return rows


def _row(
    table: CocoTable,
    model: LatentModel,
    plan: assembly.Plan,
    given: assembly.Given,
    captions: list[str],
    out: pathlib.Path,
    judge: Judge | None,
    scorer: ClipScore | None,
) -> dict[str, Any]:
    strength = "none" if math.isinf(plan.alpha) else f"{plan.alpha:g}"
    place = out / f"nfe{plan.nfe}-alpha{strength}"
    seeds = range(table.images)
    how = sampling_job.Batching(batch_size=min(4, table.images))
    identity = {"prompts_sha256": digest(captions[: table.images])}
    folder = sampling_job.draw_to_folder(model.trained, plan, seeds, place, how, given=given, identity=identity)
    row: dict[str, Any] = {"NFE": plan.nfe, "alpha": strength, "images": table.images}
    if judge is not None:
        row |= judge(open_images(folder.folder))
    if scorer is not None:
        scores = [scorer([folder.load(seed)], [captions[seed]])[0] for seed in seeds]
        row["clip_score"] = float(np.mean(scores))
    files.write_json(place / "row.json", plain(row))
    return row


def markdown(rows: list[Mapping[str, Any]]) -> str:
    """The table."""
    return quality.markdown(rows)
