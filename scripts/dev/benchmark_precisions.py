"""What each precision costs and gives, on an accelerator above all; timed in turns within one run.

    python scripts/dev/benchmark_precisions.py            about six minutes on one GPU, compilation included
    python scripts/dev/benchmark_precisions.py --quick    a small network, to see that it runs; a minute on any device

Writes a table and a JSON file to docs/benchmarks/. Networks are those of configs/ at full size with random weights:
cifar10_deep (configs/ve/cifar10_ncsnpp_deep_continuous.py) and ffhq1024 (configs/ve/ffhq_ncsnpp_continuous.py).
Precisions are those of --precision: float32, tf32, and bfloat16, where activations are bfloat16 too. A CPU
takes float32 for tf32; the times and the differences tell. The sampler's state is float32 in all. Figures are medians
over the turns. The last line is JSON:

    images_per_second       of a whole PC run with PDS on all local devices, by network and precision
    mfu                     operations a second of the network's evaluation on one device (XLA's count) over those of a
                            large matrix product in the same precision
    network_over_diffusers  seconds of diffusers' UNet2DModel over those of ncsnpp, same weights, inputs, device and
                            precision; empty where there was nothing to compare
    hardware                device and versions

The table also has the rate over the data sheet's (devices in PEAKS), and the difference of the score from that in
float32, max |s - s32| / max |s32| of the worst image. A batch that does not fit is halved until it does. PyTorch runs
eagerly, in a process of its own, in the fastest of its forms: contiguous or channels last, and in bfloat16 autocast or
converted weights. What could not be measured, or had no time left, is named with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs.ve import church_ncsnpp_continuous, cifar10_ncsnpp_deep_continuous, ffhq_ncsnpp_continuous
from pds_jax import parallel, preconditioner, sampling, sde_lib
from pds_jax.bench import quality
from pds_jax.bench.timing import Timer, clock, in_turns
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import scripts
from pds_jax.io import files
from pds_jax.models import create_model, init_model
from pds_jax.ops import batch_mul
from pds_jax.score_fn import get_score_fn
from pds_jax.types import PdsError, check_choice

# precision -> (that of matrix products, the network's dtype), in the order in which time is spent on them.
PRECISIONS: dict[str, tuple[str, str]] = {
    "float32": ("highest", "float32"),
    "tf32": ("tensorfloat32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
}
# Dense TFLOP/s of the data sheets, by jax's device_kind; of the SXM boards.
_HOPPER = {"float32": 67.0, "tf32": 494.7, "bfloat16": 989.0}
PEAKS = {"NVIDIA H100 80GB HBM3": _HOPPER, "NVIDIA H200": _HOPPER}


def tiny_configuration() -> Any:
    """A network of one resolution, which compiles in seconds."""
    config = cifar10_ncsnpp_deep_continuous.get_config("runlocal")
    config.model.ch_mult = (1,)
    return config


# network -> (configuration, iterations N, most images at once on an accelerator)
NETWORKS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "cifar10_deep": (cifar10_ncsnpp_deep_continuous.get_config, 20, 128),
    "ffhq1024": (ffhq_ncsnpp_continuous.get_config, 4, 8),
    "tiny": (tiny_configuration, 4, 4),
}

_QUICK = flags.DEFINE_bool("quick", False, "A small network, two turns.")
_TURNS = flags.DEFINE_integer("turns", 3, "Turns; figures are medians over them.")
_NETWORKS = flags.DEFINE_list("networks", ["cifar10_deep", "ffhq1024"], f"Some of {', '.join(NETWORKS)}.")
_PRECISIONS = flags.DEFINE_list("precisions", list(PRECISIONS), "Some of them; float32 is always measured.")
_DIFFUSERS = flags.DEFINE_bool("diffusers", True, "Compare with diffusers' network too.")
_BATCH = flags.DEFINE_integer("batch", None, "Images at once on a device; default: what fits, from --max_batch down.")
_MAX_BATCH = flags.DEFINE_integer("max_batch", None, "Most images at once on a device; default: by network, 4 on CPUs.")
_STEPS = flags.DEFINE_integer("steps", None, "Iterations N of the sampler, two evaluations each; default: by network.")
_MINUTES = flags.DEFINE_float("minutes", 6.0, "Nothing more is begun after so many minutes.")
_OUT = flags.DEFINE_string("out", "docs/benchmarks", "Folder for the results; '' writes none.")
_CACHE = flags.DEFINE_string("cache_dir", None, "Compilation cache; default: the user's.")
_TORCH_JOB = flags.DEFINE_string("torch_job", None, "The process of PyTorch; used by the program itself.")

Rows = tuple[list[dict[str, Any]], dict[str, str]]  # what was measured; what was not, and why


# --- timing and arithmetic -------------------------------------------------------------------------------------


def halving(attempt: Callable[[int], Any], batch: int) -> Any:
    """What an attempt with a batch gives, the batch halved for as long as memory runs out."""
    while True:
        try:
            return attempt(batch)
        except (parallel.OutOfMemory, jax.errors.JaxRuntimeError) as error:
            lacks_memory = isinstance(error, parallel.OutOfMemory) or "RESOURCE_EXHAUSTED" in str(error)
            if batch == 1 or not lacks_memory:
                raise
        batch //= 2
        print(f"out of memory, now with {batch}", flush=True)


def rates(network: tuple[float, float], product: tuple[float, float], peak: float | None) -> dict[str, Any]:
    """TFLOP/s of a network and a matrix product, each given as (operations, seconds), and what their ratios are."""
    achieved, best = (operations / seconds / 1e12 for operations, seconds in (network, product))
    sheet = {} if peak is None else {"mfu_of_data_sheet": achieved / peak}
    return {"TFLOP_per_second": achieved, "matmul_TFLOP_per_second": best, "mfu": achieved / best, **sheet}


def difference(score: np.ndarray, reference: np.ndarray) -> float:
    """max |s - r| / max |r| of the worst of the images that both have."""
    count, axes = min(len(score), len(reference)), tuple(range(1, score.ndim))
    error = np.abs(score[:count] - reference[:count]).max(axes)
    return float((error / np.abs(reference[:count]).max(axes)).max())


def operations(*programs: Any) -> float:
    """XLA's count, of the first program that has one; NaN where none has."""
    for program in programs:
        with contextlib.suppress(NotImplementedError, jax.errors.JaxRuntimeError):
            found = program.cost_analysis() or {}
            count = (found[0] if isinstance(found, list) else found).get("flops", 0)
            if count > 0:
                return float(count)
    return math.nan


# --- networks and samplers -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ready:
    """A precision to be timed: images on a device, the operations and outcome of an evaluation, and two calls."""

    batch: int
    nfe: int
    operations: float
    score: np.ndarray
    evaluate: Callable[[], Any]
    draw: Callable[[], Any]


def random_params(config: Any) -> Any:
    """Weights that keep the size of activations, drawn on the host: scales one, biases zero, the rest over √fan-in."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if leaf.ndim == 1 and path[-1].key != "W":
            return np.full(leaf.shape, path[-1].key == "scale", np.float32)
        # W of one axis belongs to the Fourier embedding.
        scale = config.model.fourier_scale if leaf.ndim == 1 else 1 / math.sqrt(math.prod(leaf.shape[:-1]))
        return np.float32(scale) * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: init_model(jax.random.key(0), config)))


def compiled(precision: str, function: Callable[..., Any], *words: Any) -> tuple[Callable[[], Any], float]:
    """A call of a function in a precision, warmed up, and its operations."""
    with jax.default_matmul_precision(PRECISIONS[precision][0]):
        lowered = jax.jit(function).lower(*words)
        program = lowered.compile()
    jax.block_until_ready(program(*words))
    return lambda: program(*words), operations(lowered, program)


def matmul(precision: str, size: int) -> Callable[[], Any]:
    """A product of square matrices."""
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), PRECISIONS[precision][1])
    return compiled(precision, jnp.matmul, a, b)[0]


def prepare(config: Any, params: Any, precision: str, steps: int, batch: int) -> Ready:
    """Compile the network and the sampler for a batch on each device; both need their memory at once to get through."""
    config.model.dtype = PRECISIONS[precision][1]
    sde, _ = sde_lib.get_sde(config)
    score_fn = get_score_fn(sde, create_model(config), params, continuous=True)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    # Batches of other sizes begin with the same images.
    noise = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
    t = jnp.asarray(sde.T * np.resize(np.array([0.05, 0.5, 1.0], np.float32), batch), jnp.float32)
    x = batch_mul(sde.std(t), jnp.asarray(noise))
    evaluate, count = compiled(precision, lambda score_fn, x, t: score_fn(x, t), score_fn, x, t)
    m = preconditioner.from_radius(shape, 0.1 * shape[0], 1.6)
    sampler = sampling.get_pc_sampler(sde.with_num_scales(steps), shape, snr=0.16, preconditioner=m, check=False)
    keys = sampling.image_keys(range(batch * jax.local_device_count()))

    def draw() -> Any:
        with jax.default_matmul_precision(PRECISIONS[precision][0]):
            return parallel.sample(sampler, keys, score_fn).x

    with jax.default_matmul_precision(PRECISIONS[precision][0]):
        parallel.warm_up(sampler, keys, score_fn)
    return Ready(batch, int(sampler.nfe), count, np.asarray(evaluate()), evaluate, draw)


def measure_network(net: str, precisions: list[str], turns: int, until: float) -> Rows:
    """A row a precision, all timed in turns."""
    make, steps, batch = NETWORKS[net]
    on_cpu, config, ready = jax.default_backend() == "cpu", make(), {}
    params = jax.tree.map(jnp.asarray, random_params(config))
    steps, batch = _STEPS.value or steps, _BATCH.value or _MAX_BATCH.value or (min(batch, 4) if on_cpu else batch)
    for precision in precisions:
        start = time.monotonic()
        if start < until:
            attempt = functools.partial(prepare, config, params, precision, steps)
            ready[precision] = attempt(batch) if _BATCH.value else halving(attempt, batch)
            print(f"{net} {precision}: ready after {time.monotonic() - start:.0f} s", flush=True)
    size = 1536 if on_cpu else 8192
    timers: dict[str, Timer] = {}
    for name, job in ready.items():
        timers[f"matmul {name}"] = clock(matmul(name, size), 5)
        timers[f"network {name}"], timers[f"sampler {name}"] = clock(job.evaluate, 2), clock(job.draw)
    seconds = {name: float(np.median(times)) for name, times in in_turns(timers, turns, until).items()}
    peaks = PEAKS.get(jax.local_devices()[0].device_kind, {})
    rows = []
    for name, job in ready.items():
        network, product = seconds[f"network {name}"], seconds[f"matmul {name}"]
        row = {
            "network": net, "precision": name, "batch": job.batch, "NFE": job.nfe,
            "ms_an_image": 1e3 * network / job.batch,
            "images_per_second": job.batch * jax.local_device_count() / seconds[f"sampler {name}"],
            "GFLOP_an_image": job.operations / job.batch / 1e9,
            **rates((job.operations, network), (2.0 * size**3, product), peaks.get(name)),
            "difference": difference(job.score, ready["float32"].score),
        }  # fmt: skip
        rows.append(row)
    return rows, {f"{net} {name}": "no time was left" for name in precisions if name not in ready}


# --- diffusers -------------------------------------------------------------------------------------------------


def skip_configuration(quick: bool) -> Any:
    """The NCSN++ that diffusers has too (input and output skips), of CIFAR-10's size."""
    size = "ch_mult=1:1,num_res_blocks=1" if quick else "ch_mult=1:2:2:2,num_res_blocks=4"
    return church_ncsnpp_continuous.get_config(f"image_size=32,nf=128,attn_resolutions=16,{size}")


def torch_form(unet: Any, x: Any, sigma: Any, layout: str, kind: str) -> Callable[[], Any]:
    """A call of diffusers' network; kind is float32, autocast or converted, the last two for bfloat16."""
    import torch

    unet, layout = copy.deepcopy(unet), getattr(torch, layout)
    if kind == "converted":
        unet, x = unet.bfloat16(), x.bfloat16()
    unet, x = unet.to(memory_format=layout), x.to(memory_format=layout)

    def run() -> Any:
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=kind == "autocast"):
            return unet(x, sigma).sample

    return run


def torch_seconds(run: Callable[[], Any], precision: str, device: str, calls: int) -> float:
    """Seconds of a call."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return (time.perf_counter() - start) / calls


def fastest_form(inputs: tuple[Any, Any, Any], precision: str, *words: Any) -> tuple[str, Callable[[], Any]]:
    """Name and call of the form of a precision that takes least time."""
    found: dict[str, tuple[float, Callable[[], Any]]] = {}
    for layout in ("contiguous_format", "channels_last"):
        for kind in ("autocast", "converted") if precision == "bfloat16" else ("float32",):
            run = torch_form(*inputs, layout, kind)
            torch_seconds(run, precision, *words)  # cuDNN looks for its algorithms
            found[f"{layout}, {kind}"] = torch_seconds(run, precision, *words), run
    name = min(found, key=lambda name: found[name][0])
    return name, found[name][1]


def torch_job(folder: str) -> None:
    """The process of PyTorch: for each line, a precision, a line of JSON; before them one about itself."""
    settings, kept = files.read_json(f"{folder}/job.json"), {}
    words = settings["device"], settings["calls"]
    try:
        import torch
        from diffusers import UNet2DModel

        torch.backends.cudnn.benchmark = True
        unet = UNet2DModel.from_pretrained(f"{folder}/unet", low_cpu_mem_usage=False).eval().to(words[0])
        x, sigma = (torch.from_numpy(np.load(f"{folder}/{name}.npy")).to(words[0]) for name in ("x", "sigma"))
        print(json.dumps({"torch": torch.__version__}), flush=True)
        for precision in map(str.strip, sys.stdin):
            if precision not in kept:
                kept[precision] = fastest_form((unet, x, sigma), precision, *words)
                output = kept[precision][1]().float().cpu().numpy()
                np.save(f"{folder}/{precision}.npy", output.transpose(0, 2, 3, 1))
            form, run = kept[precision]
            print(json.dumps({"form": form, "seconds": torch_seconds(run, precision, *words)}), flush=True)
    except Exception as error:  # among others, a broken torchvision raises RuntimeError
        print(json.dumps({"missing": f"{type(error).__name__}: {error}".splitlines()[0]}), flush=True)


@contextlib.contextmanager
def torch_process(folder: str) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Start :func:`torch_job`; gives the function that asks it, '' for its first line."""
    command = [sys.executable, __file__, f"--torch_job={folder}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        send, lines = process.stdin, process.stdout

        def ask(precision: str) -> dict[str, Any]:
            if precision:
                print(precision, file=send, flush=True)
            answer: dict[str, Any] = json.loads(next((line for line in lines if line.startswith("{")), "{}"))
            if "missing" in answer or not answer:
                raise PdsError(answer.get("missing", "the process of PyTorch ended early; its messages are above"))
            return answer

        try:
            yield ask
        finally:
            process.terminate()


def our_form(config: Any, params: Any, precision: str, x: np.ndarray, sigma: np.ndarray) -> Callable[[], Any]:
    """A call of our network."""
    config.model.dtype = PRECISIONS[precision][1]
    model = create_model(config)

    def evaluate(params: Any, x: Any, sigma: Any) -> Any:
        return model.apply({"params": params}, x, sigma, train=False)

    return compiled(precision, evaluate, *jax.device_put((params, x, sigma)))[0]


def measure_diffusers(precisions: list[str], turns: int, quick: bool, until: float) -> Rows:
    """A row a precision: our network and diffusers' on the same weights, in turns."""
    from pds_jax.convert import diffusers

    if jax.default_backend() not in ("cpu", "gpu"):
        raise PdsError(f"PyTorch is not run on {jax.default_backend()}")
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    left_out = {f"diffusers {p}": "a CPU has float32 only" for p in precisions if device == "cpu" and p != "float32"}
    config, batch, calls = skip_configuration(quick), *((2, 1) if device == "cpu" else (64, 5))
    params, sigma = random_params(config), np.geomspace(1, 50, batch).astype(np.float32)
    x = np.random.default_rng(0).standard_normal((batch, 32, 32, 3), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        diffusers.export(params, config, folder)
        np.save(f"{folder}/x.npy", np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        np.save(f"{folder}/sigma.npy", sigma)
        files.write_json(f"{folder}/job.json", {"device": device, "calls": calls})
        with torch_process(folder) as ask:
            version = ask("")["torch"]
            ours = {p: our_form(config, params, p, x, sigma) for p in precisions if f"diffusers {p}" not in left_out}
            forms = {p: ask(p)["form"] for p in ours}
            timers: dict[str, Timer] = {f"ours {p}": clock(run, calls) for p, run in ours.items()}
            timers |= {f"theirs {p}": functools.partial(lambda p: float(ask(p)["seconds"]), p) for p in ours}
            seconds = in_turns(timers, turns, until)
        rows = []
        for p, run in ours.items():
            us, them = seconds[f"ours {p}"], seconds[f"theirs {p}"]
            row = {
                "precision": p, "batch": batch,
                "flax_ms_an_image": 1e3 * float(np.median(us)) / batch,
                "diffusers_ms_an_image": 1e3 * float(np.median(them)) / batch,
                "network_over_diffusers": statistics.median(them / us),
                "diffusers_form": forms[p], "PyTorch": version,
                "difference": difference(np.asarray(run()), np.load(f"{folder}/{p}.npy")),
            }  # fmt: skip
            rows.append(row)
    return rows, left_out


# --- all of it -------------------------------------------------------------------------------------------------


def everything(start: float) -> dict[str, Any]:
    """All that was asked for; PyTorch first, while memory is free. Networks share the time evenly."""
    quick, nets = _QUICK.value, ["tiny"] if _QUICK.value else _NETWORKS.value
    turns, end = 2 if quick else _TURNS.value, start + 60 * _MINUTES.value
    precisions = [p for p in PRECISIONS if p == "float32" or p in _PRECISIONS.value]
    found: dict[str, Any] = {"hardware": parallel.hardware(), "quick": quick, "turns": turns}
    found |= {"networks": [], "diffusers": [], "left_out": {}}
    for what, names, known in (("--networks", nets, NETWORKS), ("--precisions", _PRECISIONS.value, PRECISIONS)):
        for name in names:
            check_choice(what, name, known)

    def add(key: str, what: str, measure: Callable[..., Rows], *words: Any) -> None:
        try:
            rows, left_out = measure(*words)
        except (PdsError, jax.errors.JaxRuntimeError, OSError) as error:
            rows, left_out = [], {what: str(error).splitlines()[0]}
        found[key] += rows
        found["left_out"] |= left_out
        lines = [json.dumps(row) for row in rows] + [f"{name} not measured: {why}" for name, why in left_out.items()]
        print("\n".join(lines), flush=True)

    if _DIFFUSERS.value:
        add("diffusers", "diffusers", measure_diffusers, precisions, turns, quick, end)
    for left, net in zip(range(len(nets), 0, -1), nets, strict=True):
        now = time.monotonic()
        add("networks", net, measure_network, net, precisions, turns, now + (end - now) / left)
    return found


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The keys of the last line."""
    last: dict[str, Any] = {"images_per_second": {}, "mfu": {}}
    for key, by_network in last.items():
        for row in found["networks"]:
            by_network.setdefault(row["network"], {})[row["precision"]] = row[key]
    theirs = {row["precision"]: row["network_over_diffusers"] for row in found["diffusers"]}
    return {**last, "network_over_diffusers": theirs, "hardware": found["hardware"]}


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    facts = found["hardware"]
    about = f"{facts['architecture']}, jax {facts['jax']}, random weights; medians over {found['turns']} turns."
    parts = [f"# Precisions on {facts['devices']}", about + (" **Quick run.**" if found["quick"] else "")]
    parts.append("Made by `python scripts/dev/benchmark_precisions.py`, which says what the columns are.")
    for title, key in (("Networks", "networks"), ("diffusers' UNet2DModel", "diffusers")):
        if found[key]:
            parts.append(f"## {title}\n\n{quality.markdown(found[key]).strip()}")
    if found["left_out"]:
        parts.append("## Not measured\n\n" + "\n".join(f"- {name}: {why}" for name, why in found["left_out"].items()))
    return "\n\n".join(parts) + "\n"


def main(argv: list[str]) -> None:
    """Measure, print, write."""
    scripts.refuse_words(argv)
    if _TORCH_JOB.value is not None:
        torch_job(_TORCH_JOB.value)
        return
    start = time.monotonic()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch is to fit beside
    use_compilation_cache(_CACHE.value)
    found = everything(start)
    text, last = table(found), summary(found)
    print("\n" + text)
    if _OUT.value:
        name = f"{found['hardware']['devices'].lower().replace(' ', '_')}_precisions{'_quick' * found['quick']}"
        files.write_json(pathlib.Path(_OUT.value) / f"{name}.json", {**found, "summary": last})
        files.atomic_write(pathlib.Path(_OUT.value) / f"{name}.md", lambda file: file.write(text.encode()))
    print(json.dumps(last))


if __name__ == "__main__":
    scripts.run(main)
