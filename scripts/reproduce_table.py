"""The papers' tables, one command each: iterations x without and with PDS -> sampling -> FID -> Markdown and JSON.

    python scripts/reproduce_table.py --table=fashion --minutes=60
    python scripts/reproduce_table.py --table=cifar10 --dry_run
    python scripts/reproduce_table.py --table=cifar10 --checkpoint=ncsnpp=checkpoint_26 --statistics=cifar10.npz \\
        --ref=cifar10_ref.npz --inception_weights=pt_inception-2015-12-05-6726825d.pth
    python scripts/reproduce_table.py --table=lsun --checkpoint=church=church.pth --statistics=church=church.npz \\
        --ref=church=church_ref.npz --quick
    python scripts/reproduce_table.py --table=coco --dry_run
    python scripts/reproduce_table.py --table=coco --checkpoint=FOLDER --prompts=captions_val2014.json \\
        --statistics=latents.npz --ref=coco_ref.npz --clip=CLIP_FOLDER

A row samples --images images for each of --ranges ranges of seeds and judges every range by itself; mean and minimum
are given. Finished images, features and rows are kept in OUT/TABLE. A row whose setting is certain to
diverge says so. The tables of shipped models (fashion, fashion_small, photos, digits, landscapes) compare plain
sampling, a flat M and PDS, cell by cell (pds_jax.bench.ablation). Official weights are not downloaded; rows of
networks that no --checkpoint names are left out.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from pds_jax import assembly, parallel
from pds_jax import options as options_lib
from pds_jax.bench import ablation, cells, quality
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import coco, scripts
from pds_jax.cli import sample as sampling_job
from pds_jax.cli.evaluate import training_images, training_reference
from pds_jax.cli.options import named_values
from pds_jax.data.shapes import image_shape
from pds_jax.io import files
from pds_jax.io.manifest import plain
from pds_jax.metrics import evaluation, simple
from pds_jax.metrics.extractors import EXTRACTORS, Extractor, get_extractor
from pds_jax.metrics.image_sets import ArrayImages, checked_pixels, open_images, select
from pds_jax.metrics.reference import Reference, load_reference
from pds_jax.types import PdsError

SONG = "Song et al. 2021, table 3"


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of a table.

    Attributes:
      config: module of its configuration.
      published: (FID, IS, source) of plain sampling with all iterations, or None.
      checkpoint: the one that ships, if it does.
      note: what else is published about it.
    """

    config: str
    published: tuple[float, float, str] | None = None
    checkpoint: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """What a table holds.

    Attributes:
      networks: by the name that --checkpoint uses.
      speed_ups: iterations are int(num_scales / speed_up).
      alphas: strengths of PDS beside the rows without.
      images: a range of seeds.
      ranges: of seeds.
      extractor: of the features.
    """

    networks: Mapping[str, Network]
    speed_ups: Sequence[float]
    alphas: Sequence[float]
    images: int = 50_000
    ranges: int = 1
    extractor: str = "inception"


_PDS = "PDS: best FID on CIFAR-10 1.99 (Ma et al. 2025, abstract; the setting is not stated there)"
_KARRAS = "Karras et al. 2022, abstract"
_ADM = "README of openai/guided-diffusion"
_FEW = (4, 10, 25, 50)
TABLES = {
    "cifar10": Table(
        {
            "ncsnpp": Network("configs.ve.cifar10_ncsnpp_continuous", (2.38, 9.83, SONG), note=_PDS),
            "deep": Network("configs.ve.cifar10_ncsnpp_deep_continuous", (2.20, 9.89, SONG), note=_PDS),
        },
        (1, 5, 10, 15, 25),
        (5.0, 20.0),
    ),
    "celeba": Table({"ncsnpp": Network("configs.ve.celeba_ncsnpp")}, (1, 5, 10, 15), (5.0, 20.0)),
    "lsun": Table(
        {
            "bedroom": Network("configs.ve.bedroom_ncsnpp_continuous"),
            "church": Network("configs.ve.church_ncsnpp_continuous"),
        },
        (1, 5, 20, 30),
        (5.0,),
    ),
    "ffhq": Table({"ncsnpp": Network("configs.ve.ffhq_ncsnpp_continuous")}, (1, 10, 20, 30), (5.0,)),
    "imagenet64": Table(
        {
            "edm": Network("configs.edm.imagenet64", note=f"edm: FID 1.36 at 511 NFE, stochastic sampler ({_KARRAS})"),
            "adm": Network(
                "configs.adm.imagenet64",
                note=f"adm: FID 2.07 at 250 NFE ({_ADM}), 1.55 with EDM's stochastic sampler ({_KARRAS})",
            ),
        },
        _FEW,
        (5.0,),
    ),
    "imagenet128": Table(
        {"adm": Network("configs.adm.imagenet128", note=f"FID 2.97 at 250 NFE, its classifier at scale 0.5 ({_ADM})")},
        _FEW,
        (5.0,),
    ),
    "imagenet256": Table(
        {"adm": Network("configs.adm.imagenet256", note=f"FID 4.59 at 250 NFE, its classifier at scale 1 ({_ADM})")},
        _FEW,
        (5.0,),
    ),
    "ffhq64": Table(
        {"edm": Network("configs.edm.ffhq64", note="FID 2.39 at 79 NFE, Heun (example.py of NVlabs/edm)")}, _FEW, (5.0,)
    ),
    "afhqv2": Table(
        {"edm": Network("configs.edm.afhqv2", note="FID 1.96 at 79 NFE, Heun (example.py of NVlabs/edm)")}, _FEW, (5.0,)
    ),
    "digits_pc": Table(
        {"digits": Network("configs.digits", checkpoint="digits")}, (50, 25, 12.5, 5), (5.0,), 256, 2, "digits"
    ),
    "photos_pc": Table(
        {"photos": Network("configs.photos", checkpoint="photos")}, (50, 25, 12.5, 5), (5.0,), 128, 2, "patches"
    ),
}

COCO = "coco"

_TABLE = flags.DEFINE_enum("table", None, [*TABLES, *ablation.PLANS, COCO], "Which table.")
_CHECKPOINT = flags.DEFINE_list("checkpoint", [], "PATH, or NETWORK=PATH,NETWORK=PATH where a table has several.")
_STATISTICS = flags.DEFINE_list("statistics", [], "Statistics of the data for PDS, FILE.npz or NETWORK=FILE.npz,...")
_REF = flags.DEFINE_list("ref", [], "Reference of FID, FILE.npz or NETWORK=FILE.npz,...; default: the training data.")
_WEIGHTS = flags.DEFINE_string("inception_weights", None, "Inception's file; else $PDS_INCEPTION, else torch's cache.")
_EXTRACTOR = flags.DEFINE_enum("extractor", None, sorted(EXTRACTORS), "Another extractor than the table's.")
_ARGUMENT = flags.DEFINE_string("config_argument", "", "Argument of the configurations, e.g. runlocal.")
_SPEED_UPS = flags.DEFINE_list("speed_ups", None, "Other speed-ups than the table's.")
_ALPHAS = flags.DEFINE_list("alphas", None, "Other strengths of PDS than the table's.")
_SNR = flags.DEFINE_float("snr", None, "Signal-to-noise ratio of the corrector; default: the configuration's.", 0)
_OPTIONS = flags.DEFINE_multi_string(
    "option", [], "name=value of a field of config.sampling or config.pds, e.g. --option=filters=both."
)
_PROMPTS = flags.DEFINE_string("prompts", None, "coco: captions, of COCO's annotations or a line each.")
_CLIP = flags.DEFINE_string("clip", None, "coco: folder of a CLIPModel, for the CLIP score.")
_NFES = flags.DEFINE_list("nfes", None, "coco: other network evaluations per image than the table's.")
_IMAGES = flags.DEFINE_integer("images", None, "Images a range of seeds; 50000 unless the table says otherwise.", 1)
_RANGES = flags.DEFINE_integer("ranges", None, "Ranges of seeds: 1 (shipped models 2). EDM takes the best of 3.", 1)
_ITERATIONS = flags.DEFINE_list("iterations", None, "Rows of the tables of shipped models, e.g. 10,20,40.")
_PLAIN = flags.DEFINE_list("plain_iterations", None, "Shipped models: further rows of plain sampling, e.g. 66,100,200.")
_METHODS = flags.DEFINE_list("methods", None, f"Shipped models: some of {','.join(ablation.METHODS)}.")
_CHOOSING = flags.DEFINE_integer("choosing", None, "Shipped models: images for each candidate of c and alpha.", 8)
_MINUTES = flags.DEFINE_float("minutes", None, "Shipped models: start no cell after these minutes; rerun to resume.", 0)
_BATCH = flags.DEFINE_integer("batch_size", None, "Images at once.", lower_bound=1)
_ALLOW = flags.DEFINE_bool("allow_fewer", False, "Accept an FID of fewer than 50000 images.")
_OUT = flags.DEFINE_string("out", "runs/tables", "Folder of images, rows and tables.")
_DRY = flags.DEFINE_bool("dry_run", False, "Print the cost only. Needs no weights.")
_QUICK = flags.DEFINE_bool("quick", False, "A smoke run: 16 images per row, at most 20 iterations, into OUT/quick.")
# Flags that not all tables use; "shipped" are TABLES of shipped models, which have a configuration of their own.
_USED = {
    "": ("checkpoint", "statistics", "ref", "inception_weights", "extractor", "config_argument", "speed_ups", "alphas",
         "snr", "option", "ranges", "batch_size", "allow_fewer"),
    "shipped": ("checkpoint", "statistics", "ref", "inception_weights", "extractor", "speed_ups", "alphas", "snr",
                "option", "ranges", "batch_size", "allow_fewer"),
    "ablation": ("iterations", "plain_iterations", "methods", "choosing", "ranges", "minutes", "batch_size"),
    COCO: ("checkpoint", "statistics", "ref", "inception_weights", "alphas", "prompts", "clip", "nfes", "allow_fewer"),
}  # fmt: skip


_DECIDED = {  # names that --option cannot set, and the flag that does
    "alpha": "--alphas", "snr": "--snr", "speed_up": "--speed_ups", "nfe": "--speed_ups", "statistics": "--statistics",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table."""

    network: str
    speed_up: float
    alpha: float
    snr: float

    @property
    def key(self) -> str:
        """Name of the row's folder."""
        return f"{self.network}-speed_up{self.speed_up:g}-alpha{self.alpha:g}-snr{self.snr:g}"


def check_flags(table: str) -> None:
    """Refuse flags that a table does not use.

    Raises:
      PdsError: names the first, and those that the table uses.
    """
    ships = table in TABLES and any(network.checkpoint for network in TABLES[table].networks.values())
    used = _USED[table if table == COCO else "ablation" if table in ablation.PLANS else "shipped" if ships else ""]
    others = sorted({flag for some in _USED.values() for flag in some} - set(used))
    scripts.refuse_flags([(others, f"--table={table} takes --{', --'.join(used)}")])


def numbers(
    words: Sequence[str] | None, flag: str, kind: Callable[[str], Any] = float, above: int = 0
) -> list[Any] | None:
    """The numbers of a list flag; None where it was not given.

    Raises:
      PdsError: something else, none, or one that is not above ``above``.
    """
    try:
        found = None if words is None else [kind(word) for word in words]
    except ValueError:
        found = []
    if found is not None and not (found and all(number > above for number in found)):
        raise PdsError(f"--{flag}={','.join(words or ())}: use numbers above {above}, separated by commas")
    return found


def chosen() -> Table:
    """The table that the flags describe."""
    table = TABLES[_TABLE.value]
    changes = {
        "speed_ups": numbers(_SPEED_UPS.value, "speed_ups"),
        "alphas": numbers(_ALPHAS.value, "alphas", above=1),
        "images": _IMAGES.value or (16 if _QUICK.value else None),
        "ranges": _RANGES.value or (1 if _QUICK.value else None),
        "extractor": _EXTRACTOR.value,
    }
    return dataclasses.replace(table, **{name: value for name, value in changes.items() if value is not None})


def config_of(network: Network) -> ConfigDict:
    """The configuration of a network.

    Raises:
      PdsError: --config_argument does not fit it.
    """
    try:
        return importlib.import_module(network.config).get_config(_ARGUMENT.value)
    except ValueError as error:
        raise PdsError(f"--config_argument={_ARGUMENT.value}: {error}") from error


def options_of(table: Table) -> dict[str, Any]:
    """The sampler's options of --option, which hold in every row.

    Raises:
      PdsError: an option that a flag of its own decides, that is unknown, or without effect for a network.
    """
    options = named_values(_OPTIONS.value, "option")
    for name in options:
        if name in _DECIDED:
            raise PdsError(f"--option={name}={options[name]}: {_DECIDED[name]} decides it; use that flag")
    snr = {} if _SNR.value is None else {"snr": _SNR.value}
    for network in table.networks.values():
        options_lib.check_used({**options, **snr}, config_of(network))
    return options


def rows_of(table: Table) -> list[Row]:
    """All rows."""
    found = []
    for name, network in table.networks.items():
        config = config_of(network)
        snr = config.sampling.snr if _SNR.value is None else _SNR.value
        speed_ups = [s for s in table.speed_ups if not _QUICK.value or config.model.num_scales / s <= 20]
        if _QUICK.value and not speed_ups:
            speed_ups = [config.model.num_scales / 20]
        for speed_up in speed_ups[:1] if _QUICK.value else speed_ups:
            for alpha in [math.inf, *(table.alphas[-1:] if _QUICK.value else table.alphas)]:
                found.append(Row(name, float(speed_up), alpha, snr))
    return found


def by_network(words: Sequence[str], table: Table, flag: str) -> dict[str, str]:
    """NETWORK -> PATH of a flag."""
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals:
            if len(table.networks) > 1:
                raise PdsError(f"--{flag}={word}: this table has {list(table.networks)}; write NETWORK={word}")
            name, path = next(iter(table.networks)), word
        if name not in table.networks:
            raise PdsError(f"--{flag}={word}: no network {name!r} in this table; it has {list(table.networks)}")
        found[name] = path
    return found


# --- what it costs -----------------------------------------------------------------------------------------------


def dry_run(table: Table) -> dict[str, Any]:
    """Network evaluations, operations, hours and disk; nothing is compiled, so this is no better than a factor of 3."""
    rate = measured_rate()
    print(f"{table.images} images x {table.ranges} ranges a row; this machine multiplies at {rate / 1e12:.3g} TFLOP/s")
    options = options_of(table)
    costs, lines = {name: flops(config_of(network)) for name, network in table.networks.items()}, []
    for row in rows_of(table):
        config, (operations, pixels, weights, memory) = config_of(table.networks[row.network]), costs[row.network]
        config = options_lib.with_options(config, options)
        iterations = int(config.model.num_scales / row.speed_up)
        nfe = iterations * ((config.sampling.corrector != "none") * config.sampling.n_steps_each + (
            config.sampling.predictor != "none"))  # fmt: skip
        count = table.images * table.ranges
        line = {
            "network": row.network,
            "iterations": iterations,
            "NFE": nfe,
            "alpha": "none" if math.isinf(row.alpha) else row.alpha,
            "GFLOP an evaluation": operations / 1e9,
            "MiB of weights": weights / 2**20,
            "MiB an image": memory / 2**20,
            "hours": operations * nfe * count / rate / 3600,
            "GB of PNG, at most": pixels * count / 1e9,
        }
        lines.append(line)
    print(quality.markdown(lines))
    batch = _BATCH.value or min(assembly.MAX_BATCH, table.images)
    for name, (_, _, weights, memory) in costs.items():
        need = (weights + memory * -(-batch // len(parallel.devices()))) / 2**30
        print(f"{name}: at most about {need:.1f} GiB on each device for {batch} images at once (--batch_size)")
        if table.networks[name].note:
            print(f"published: {table.networks[name].note}")
    total = {name: sum(line[name] for line in lines) for name in ("hours", "GB of PNG, at most")}
    print(f"In all: {total['hours']:.3g} hours at that rate, {total['GB of PNG, at most']:.3g} GB at most")
    return {"dry_run": True, "rows": lines, **total}


def flops(config: ConfigDict) -> tuple[float, int, int, int]:
    """Of one network evaluation of one image: operations, bytes of the image, of the weights, and of what is live."""
    from pds_jax.bench.memory import peak_bytes
    from pds_jax.models import create_model, init_model

    shape = image_shape(config)
    model = create_model(config)
    params = jax.eval_shape(lambda: init_model(jax.random.key(0), config))
    x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, *shape), (1,)))
    apply = jax.jit(lambda params, x, t: model.apply({"params": params}, x, t, train=False))
    analysis: Any = apply.lower(params, x, t).cost_analysis()
    weights = 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return float(analysis["flops"]), math.prod(shape), weights, peak_bytes(apply, params, x, t)


def measured_rate(size: int = 2048) -> float:
    """Operations a second of a float32 matrix product on the first device, times the number of devices."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    start = time.perf_counter()
    product(a).block_until_ready()
    return 2 * size**3 / (time.perf_counter() - start) * len(parallel.devices())


# --- rows --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Judge:
    """A network with what judges its samples."""

    trained: assembly.Trained
    extractor: Extractor
    reference: Reference
    metrics: Sequence[str]
    power: np.ndarray | None

    def __call__(self, images: Any, folder: pathlib.Path) -> dict[str, Any]:
        """Figures of a set of images."""
        figures = evaluation.evaluate(
            images, self.reference, self.extractor, metrics=self.metrics, allow_fewer=True, folder=folder
        )
        if self.power is not None and len(images) <= 4096:
            figures["spectrum_error"] = simple.spectrum_error(images.images(range(len(images))) / 255.0, self.power)
        return figures


def judge_of(table: Table, name: str, out: pathlib.Path) -> Judge:
    """Load a network and its reference; everything that may be missing is missed here.

    Raises:
      PdsError: no weights, Inception or reference.
    """
    network, words = table.networks[name], {}
    if table.extractor == "inception":
        words = {"weights": _WEIGHTS.value}
    extractor = get_extractor(table.extractor, **words).on_devices(parallel.data_parallel)
    reference_path = by_network(_REF.value, table, "ref").get(name)
    reference = load_reference(reference_path) if reference_path else None
    checkpoint = by_network(_CHECKPOINT.value, table, "checkpoint").get(name) or network.checkpoint
    trained = assembly.load(checkpoint, None if network.checkpoint else config_of(network))
    metrics = ["fid"] + (["is"] if table.extractor in ("inception", "digits") else [])
    if reference is None:
        reference = training_reference(training_images(trained.config), extractor, out / name, metrics, batch_size=64)
    reference.check(extractor, trained.shape)
    allow_fewer = _ALLOW.value or _QUICK.value or table.extractor != "inception"
    evaluation.check_request(table.images, metrics, reference, allow_fewer=allow_fewer)
    power = None if trained.statistics is None else trained.statistics.power
    return Judge(trained, extractor, reference, metrics, power)


def measure(row: Row, table: Table, judge: Judge, out: pathlib.Path) -> dict[str, Any]:
    """Sample and judge one row, or read what an earlier run found."""
    trained, place = judge.trained, out / row.key
    statistics = by_network(_STATISTICS.value, table, "statistics").get(row.network)
    options = options_of(table) | ({"statistics": statistics} if statistics else {})
    if options_lib.with_options(trained.config, options).sampling.corrector != "none":
        options["snr"] = row.snr
    shown = {"network": row.network, "alpha": row.alpha, "snr": row.snr}
    try:
        plan = assembly.plan(trained, speed_up=row.speed_up, alpha=row.alpha, **options)
    except PdsError as error:
        return {**shown, "iterations": int(trained.config.model.num_scales / row.speed_up), "refused": str(error)}
    identity = plain({
        **trained.identity, "extractor": judge.extractor.identity, "images": table.images, "ranges": table.ranges,
        "reference": judge.reference.provenance, **plan.describe(),
    })  # fmt: skip
    path = place / "row.json"
    if path.exists():
        stored = files.read_json(path)
        if stored["identity"] == identity:
            return stored["row"]
    facts = {**shown, "iterations": plan.N, "nfe": plan.nfe}
    try:
        start, runs = time.perf_counter(), []
        for number in range(table.ranges):
            seeds = range(number * table.images, (number + 1) * table.images)
            batching = sampling_job.Batching(batch_size=_BATCH.value)
            labels = trained.default_labels
            chosen = {"labels": labels} if labels else {}
            made = sampling_job.draw_to_folder(
                trained, plan, seeds, place / "samples", batching, labels=labels, identity=chosen
            )
            figures = judge(select(open_images(made.folder), seeds), out / "unfinished")
            runs.append({"seeds": f"{seeds[0]}-{seeds[-1]}", **figures})
    except FloatingPointError as error:
        return {**facts, "refused": str(error)}
    result = plain({**facts, **evaluation.summarise(runs), "runs": runs, "seconds": time.perf_counter() - start})
    files.write_json(path, {"identity": identity, "row": result})
    return result


def real_images(table: Table, judge: Judge, out: pathlib.Path) -> dict[str, Any] | None:
    """The figures of as many real images, where the data ship."""
    name = next(iter(table.networks))
    if not table.networks[name].checkpoint:
        return None
    draw = quality.judge_for(name).real
    runs = []
    for number in range(table.ranges):
        pixels = checked_pixels(draw(table.images, number * table.images), "real images")
        runs.append(judge(ArrayImages("real images", pixels), out / "unfinished"))
    return plain({"network": "real images", **evaluation.summarise(runs), "runs": runs})


# --- the table ---------------------------------------------------------------------------------------------------


def markdown(table: Table, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, its published figures and the notes."""
    title = "FID" if table.extractor == "inception" else f"Fréchet distance ({table.extractor})"
    lines = []
    for row in rows:
        plain_row, mean, least = row.get("alpha") in ("inf", math.inf), row.get("mean", {}), row.get("minimum", {})
        line = {
            "network": row["network"],
            "iterations": row.get("iterations", ""),
            "NFE": row.get("nfe", ""),
            "M": "" if "alpha" not in row else "without" if plain_row else f"PDS, alpha {row['alpha']:g}",
            "snr": row.get("snr", ""),
            f"{title}, mean": mean.get("fid", "diverges" if "refused" in row else ""),
            "minimum": least.get("fid", ""),
            "IS": mean.get("is", ""),
            "spectrum error": mean.get("spectrum_error", ""),
            "published FID, IS": published(table, row),
        }
        lines.append(line)
    used = [name for name in lines[0] if any(line[name] != "" for line in lines)]
    notes = [network.note for network in table.networks.values()]
    notes += [note for row in rows for run in row.get("runs", ()) for note in run.get("notes", ())]
    notes += [f"{row['network']}, {row['iterations']} iterations, alpha {row['alpha']}: {row['refused']}"
              for row in rows if "refused" in row]  # fmt: skip
    text = quality.markdown([{name: line[name] for name in used} for line in lines])
    return text + "".join(f"\nNote: {note}\n" for note in dict.fromkeys(notes) if note)


def published(table: Table, row: Mapping[str, Any]) -> str:
    """The papers' figures of plain sampling with all iterations."""
    network = table.networks.get(row["network"])
    if network is None or network.published is None or row["alpha"] not in ("inf", math.inf) or _ARGUMENT.value:
        return ""
    whole = row["iterations"] == config_of(network).model.num_scales
    return "{:.2f}, {:.2f} ({})".format(*network.published) if whole else ""


def measure_all(table: Table, out: pathlib.Path) -> dict[str, Any]:
    """All rows of the networks that there are."""
    given = by_network(_CHECKPOINT.value, table, "checkpoint")
    options_of(table)
    for words, flag in ((_STATISTICS.value, "statistics"), (_REF.value, "ref")):
        by_network(words, table, flag)
    names = [name for name, network in table.networks.items() if name in given or network.checkpoint]
    if not names:
        raise PdsError(
            f"give the weights: --checkpoint=NETWORK=PATH for some of {list(table.networks)}; checkpoints/README.md "
            "says where the official ones are. --dry_run needs none"
        )
    judges: dict[str, Judge] = {name: judge_of(table, name, out) for name in names}
    rows = []
    record = {"table": _TABLE.value, "images": table.images, "ranges": table.ranges, "extractor": table.extractor}
    for row in rows_of(table):
        if row.network in judges:
            rows.append(measure(row, table, judges[row.network], out))
            write(table, out, record, rows)
    floor = real_images(table, judges[names[0]], out)
    rows += [floor] if floor else []
    write(table, out, record, rows)
    return {**record, "rows": rows}


def write(table: Table, out: pathlib.Path, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Table so far, in both forms."""
    files.write_json(out / "table.json", plain({**record, "rows": list(rows)}))
    head = f"{_TABLE.value}: {table.ranges} x {table.images} images per row\n\n"
    files.atomic_write(out / "table.md", lambda file: file.write((head + markdown(table, rows)).encode()))


# --- what PDS is worth on the models that ship ---------------------------------------------------------------------


def ablate(out: pathlib.Path) -> dict[str, Any]:
    """The table of ``pds_jax.bench.ablation``."""
    size = ablation.Plan(((20, 16),), (5, 10), 2, 8) if _QUICK.value else ablation.PLANS[_TABLE.value]
    if _IMAGES.value:
        size = dataclasses.replace(size, counts=tuple((most, _IMAGES.value) for most, _ in size.counts))
    iterations = tuple(numbers(_ITERATIONS.value, "iterations", int) or size.iterations)
    if not any(size.images(n) for n in iterations):
        raise PdsError(f"--iterations={min(iterations)}: this table has at most {size.counts[-1][0]}")
    plain_too = tuple(numbers(_PLAIN.value, "plain_iterations", int) or ())
    methods = size.methods if _METHODS.value is None else tuple(_METHODS.value)
    if not methods or set(methods) - set(ablation.METHODS):
        raise PdsError(f"--methods={','.join(methods)}: use some of {', '.join(ablation.METHODS)}")
    if beyond := [n for n in plain_too if not size.images(n)]:
        raise PdsError(f"--plain_iterations={beyond[0]}: this table has at most {size.counts[-1][0]}")
    size = dataclasses.replace(
        size, iterations=iterations, plain=plain_too, methods=methods, blocks=_RANGES.value or size.blocks,
        choosing=_CHOOSING.value or size.choosing,
    )  # fmt: skip
    if _DRY.value:
        work = [(cell, size.images(cell.iterations)) for cell in ablation.cells(size)]
        each = {name: 2 if name == "PC" else 1 for name in ablation.SAMPLERS}
        evaluations = 0
        for cell, count in work:
            some = len(ablation.candidates(cell))
            images = count * size.blocks + (size.choosing * some if some > 1 else 0)
            evaluations += cell.iterations * each[cell.sampler] * images
        print(f"{len(work)} cells, {evaluations:,} network evaluations")
        return {"dry_run": True, "cells": len(work), "evaluations": evaluations}
    trained = assembly.load(_TABLE.value)
    judge = quality.judge_for(trained.config.data.dataset)
    bench = cells.Cells(trained, judge, out, size.blocks, size.choosing, _BATCH.value or 256, _MINUTES.value)
    rows = ablation.run(bench, size)
    if rows:
        print(f"\n{(out / 'table.md').read_text()}\nTable: {out / 'table.md'}, {out / 'table.json'}")
    whole = sum(1 for _ in ablation.cells(size))
    return {"table": _TABLE.value, "cells": len(rows), "of": whole, "images": size.images(min(size.iterations))}


# --- text to image -----------------------------------------------------------------------------------------------


def coco_table() -> coco.CocoTable:
    """The table of texts that the flags describe."""
    changes = {
        "nfes": numbers(_NFES.value, "nfes", int),
        "alphas": numbers(_ALPHAS.value, "alphas", above=1),
        "images": _IMAGES.value or (2 if _QUICK.value else None),
    }
    table = dataclasses.replace(coco.CocoTable(), **{k: value for k, value in changes.items() if value is not None})
    return dataclasses.replace(table, nfes=table.nfes[:1], alphas=table.alphas[:1]) if _QUICK.value else table


def coco_path() -> str | None:
    """The only path of --checkpoint."""
    if len(_CHECKPOINT.value) > 1:
        raise PdsError(f"--checkpoint={','.join(_CHECKPOINT.value)}: this table has one network")
    return next(iter(_CHECKPOINT.value), None)


def measure_coco(table: coco.CocoTable, out: pathlib.Path) -> dict[str, Any]:
    """All rows of the table of texts; FID where --ref is given, CLIP score where --clip is."""
    path = coco_path()
    if path is None or _PROMPTS.value is None:
        raise PdsError("give --checkpoint=FOLDER of a text-to-image model and --prompts=FILE; --dry_run needs neither")
    judge = None
    if _REF.value:
        extractor = get_extractor("inception", weights=_WEIGHTS.value).on_devices(parallel.data_parallel)
        reference = load_reference(_REF.value[0])
        evaluation.check_request(table.images, ["fid"], reference, allow_fewer=_ALLOW.value or _QUICK.value)

        def judge(images: Any) -> dict[str, Any]:
            reference.check(extractor, images.shape)
            words = {"metrics": ["fid"], "allow_fewer": True, "folder": out / "unfinished"}
            return evaluation.evaluate(images, reference, extractor, **words)

    given = {"statistics_file": next(iter(_STATISTICS.value), None), "clip": _CLIP.value, "judge": judge}
    rows = coco.measure(table, path, _PROMPTS.value, out, **given)
    files.write_json(out / "table.json", plain({"table": "coco", "images": table.images, "rows": rows}))
    head = f"coco: {table.images} captions a row, guidance {table.guidance:g}\n\n"
    files.atomic_write(out / "table.md", lambda file: file.write((head + coco.markdown(rows)).encode()))
    return {"table": "coco", "images": table.images, "rows": rows}


def main(argv: list[str]) -> None:
    """Measure or estimate."""
    if len(argv) > 1 or _TABLE.value is None:
        raise PdsError(f"type --table={'|'.join([*TABLES, *ablation.PLANS, COCO])}; every option starts with --")
    check_flags(_TABLE.value)
    use_compilation_cache(None)
    out = pathlib.Path(_OUT.value) / ("quick" if _QUICK.value else "") / _TABLE.value
    if not _DRY.value:
        files.check_writable(out / "table.json")
    if _TABLE.value in ablation.PLANS:
        print(json.dumps(plain(ablate(out))))
        return
    jobs: dict[bool, Callable[[], dict[str, Any]]] = {
        True: lambda: dry_run(chosen()),
        False: lambda: measure_all(chosen(), out),
    }
    if _TABLE.value == COCO:
        jobs = {
            True: lambda: coco.dry_run(coco_table(), coco_path(), measured_rate()),
            False: lambda: measure_coco(coco_table(), out),
        }
    result = jobs[_DRY.value]()
    if not _DRY.value:
        print(f"\n{(out / 'table.md').read_text()}\nTable: {out / 'table.md'}, {out / 'table.json'}")
    print(json.dumps(plain({name: value for name, value in result.items() if name != "rows"})))


if __name__ == "__main__":
    scripts.run(main)
