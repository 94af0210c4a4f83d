"""What sampling costs, as ratios of things timed in turns within one run.

    python scripts/dev/benchmark.py            everything; about a quarter of an hour on two quiet cores
    python scripts/dev/benchmark.py --quick    small networks and few turns, to see that it runs

Writes a table, a figure and a JSON file to docs/benchmarks/. Whatever is compared is timed in turns, so that both share
what else the machine does; figures are medians over the turns. The last line is JSON:

    sampler_over_network    (a) seconds of the sampler without PDS over NFE times the bare network's seconds
    pds_over_plain          (b) seconds with PDS over seconds without, at equal NFE, composed of parts timed apart:
                            1 + (steps with PDS - steps without) / (network + steps without), the steps being those of a
                            score that costs nothing. Ratios of whole runs, which are noisier, are in the table
    network_over_diffusers  (c) seconds of diffusers' UNet2DModel over those of ncsnpp, same weights, inputs, float32
    scaling                 (d) images a second on n devices with n cores over n times those of one device with one
                            core; where there are fewer cores than devices, over those cores
    warm_over_cold          (e) seconds from process start to the first image: first start over second start
    peak_bytes              (f) largest resident set of a process that samples four images; at 256 and 1024 pixels, one
    flops_over_peak         (g) the network's floating-point operations a second (XLA's count) over the largest that
                            this machine's convolutions and matrix products reach
    compiles_on_second_call programs compiled by a second run with another alpha, number of steps, snr and seeds

The networks of CIFAR-10, 256 and 1024 pixels are those of configs/ at full size, with random weights.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
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

from configs import digits
from configs.ve import (
    church_ncsnpp_continuous,
    cifar10_ncsnpp_continuous,
    cifar10_ncsnpp_deep_continuous,
    ffhq_ncsnpp_continuous,
)
from pds_jax import assembly, checkpoints, parallel, preconditioner, sampling, sde_lib
from pds_jax.bench import figures, quality
from pds_jax.bench.timing import clock, in_turns
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import scripts
from pds_jax.io import files
from pds_jax.models import create_model, init_model
from pds_jax.score_fn import get_score_fn
from pds_jax.types import ScoreFn

_QUICK = flags.DEFINE_bool("quick", False, "Small networks, few turns.")
_TURNS = flags.DEFINE_integer("turns", 5, "Turns; figures are medians over them.")
_PARTS = flags.DEFINE_list("parts", list("abcdefg"), "Which of the rows above.")
_OUT = flags.DEFINE_string("out", "docs/benchmarks", "Folder for the results; '' writes none.")
_CACHE = flags.DEFINE_string("cache_dir", None, "Compilation cache; default: the user's.")
_JOB = flags.DEFINE_string("job", None, "One measurement in a process of its own; used by the program itself.")
_NET = flags.DEFINE_string("net", "photos", "Network of the job.")

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_STARTED = "PDS_JAX_BENCHMARK_STARTED"  # in the environment of a job: when its process was started


# --- networks --------------------------------------------------------------------------------------------------


def configuration(net: str) -> Any:
    """The configuration behind a name."""
    if net == "256":
        return church_ncsnpp_continuous.get_config()
    if net == "1024":
        return ffhq_ncsnpp_continuous.get_config()
    if net == "cifar10_deep":
        return cifar10_ncsnpp_deep_continuous.get_config()
    if net == "tiny":
        return digits.get_config("nf=8,ch_mult=1:1,parametrisation=score_sde,image_size=32,num_channels=3")
    return cifar10_ncsnpp_continuous.get_config()


def skip_configuration(quick: bool) -> Any:
    """The NCSN++ that diffusers has too (input and output skips), of CIFAR-10's size."""
    size = "ch_mult=1:1,num_res_blocks=1" if quick else "ch_mult=1:2:2:2,num_res_blocks=4"
    return church_ncsnpp_continuous.get_config(f"image_size=32,nf=128,attn_resolutions=16,{size}")


def random_params(config: Any) -> Any:
    """Random weights, drawn on the host."""
    shapes = jax.eval_shape(lambda: init_model(jax.random.key(0), config))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), shapes)


def network(net: str) -> tuple[ScoreFn, Any, tuple[int, int, int]]:
    """(score function, SDE, shape of an image); photos, digits and folders as they are, others with random weights."""
    if net in ("photos", "digits") or pathlib.Path(net).is_dir():
        trained = assembly.load(net)
        return trained.score_fn, trained.sde, trained.shape
    config = configuration(net)
    sde, _ = sde_lib.get_sde(config)
    params = jax.tree.map(jnp.asarray, random_params(config))
    size = config.data.image_size
    return get_score_fn(sde, create_model(config), params, continuous=True), sde, (size, size, config.data.num_channels)


def sampler(sde: Any, shape: tuple[int, int, int], steps: int, pds: bool) -> Any:
    """PC sampling with or without a frequency filter."""
    m = preconditioner.from_radius(shape, 0.1 * shape[0], 1.6) if pds else None
    return sampling.get_pc_sampler(sde.with_num_scales(steps), shape, snr=0.16, preconditioner=m, check=False)


# --- timing ----------------------------------------------------------------------------------------------------


def peak_bytes() -> int:
    """Largest resident set of this process so far; on Linux its own, which getrusage mixes with its parent's."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def evaluation(score_fn: ScoreFn, shape: tuple[int, int, int], batch: int) -> Callable[[], Any]:
    """One evaluation of the bare network, compiled."""
    x = jax.random.normal(jax.random.key(0), (batch, *shape), jnp.float32)
    t = jnp.full((batch,), 0.5, jnp.float32)
    compiled = jax.jit(lambda score_fn, x, t: score_fn(x, t))
    return lambda: compiled(score_fn, x, t)


# --- (a), (b): sampler and PDS ---------------------------------------------------------------------------------


def measure_sampler(net: str, batch: int, steps: int, turns: int) -> dict[str, Any]:
    """Bare network, sampler without PDS, sampler with PDS, in turns."""
    score_fn, sde, shape = network(net)
    keys = sampling.image_keys(range(batch))
    plain, pds = (sampler(sde, shape, steps, on) for on in (False, True))
    seconds = in_turns(
        {
            "network": clock(evaluation(score_fn, shape, batch), max(steps // 4, 1)),
            "plain": clock(lambda: parallel.sample(plain, keys, score_fn).x),
            "pds": clock(lambda: parallel.sample(pds, keys, score_fn).x),
        },
        turns,
    )
    nfe = int(plain.nfe)
    return {
        "network": net,
        "shape": shape,
        "batch": batch,
        "NFE": nfe,
        "network_ms": 1e3 * float(np.median(seconds["network"])),
        "sampler_over_network": statistics.median(seconds["plain"] / (nfe * seconds["network"])),
        "pds_over_plain_of_runs": statistics.median(seconds["pds"] / seconds["plain"]),
    }


def measure_operator(net: str, batch: int, steps: int, turns: int) -> dict[str, Any]:
    """What PDS adds: the network, and steps of a score that costs nothing without and with PDS, in turns."""
    score_fn, sde, shape = network(net)
    key = sampling.image_keys(range(batch))
    free = jax.tree_util.Partial(lambda x, t: -1e-4 * x)  # small, or so large a step diverges
    plain, pds = (sampler(sde, shape, steps, on) for on in (False, True))
    seconds = in_turns(
        {
            "network": clock(evaluation(score_fn, shape, batch)),
            "plain": clock(lambda: parallel.sample(plain, key, free).x),
            "pds": clock(lambda: parallel.sample(pds, key, free).x),
        },
        turns,
    )
    extra = (seconds["pds"] - seconds["plain"]) / steps
    base = 2 * seconds["network"] + seconds["plain"] / steps
    return {
        "network": net,
        "shape": shape,
        "batch": batch,
        "network_ms": 1e3 * float(np.median(seconds["network"])),
        "pds_ms_a_step": 1e3 * float(np.median(extra)),
        "pds_over_plain": 1 + statistics.median(extra / base),
        **({"peak_bytes": peak_bytes()} if batch == 1 else {}),
    }


def compiles_of_another_run() -> int:
    """Programs compiled when everything that is traced changes."""
    count = 0

    def listen(event: str, duration: float, **_: Any) -> None:
        nonlocal count
        count += event == _COMPILE_EVENT

    trained = assembly.load("digits")
    first, second = assembly.plan(trained, nfe=20, alpha=5.0), assembly.plan(trained, nfe=10, alpha=9.0, snr=0.1)
    keys = [sampling.image_keys(range(start, start + 4)) for start in (0, 1000)]
    parallel.sample(first.sampler, keys[0], trained.score_fn)
    jax.monitoring.register_event_duration_secs_listener(listen)
    parallel.sample(second.sampler, keys[1], trained.score_fn)
    found, count = count, 0
    jax.monitoring.clear_event_listeners()
    return found


# --- (c): diffusers --------------------------------------------------------------------------------------------


def measure_diffusers(batch: int, turns: int, quick: bool) -> dict[str, Any] | None:
    """Our network and diffusers' on the same weights, in turns; None where diffusers cannot be imported."""
    try:
        import torch
        from diffusers import UNet2DModel
    except Exception as error:  # diffusers raises RuntimeError where a package that it uses is broken
        print(f"diffusers is not compared: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        return None
    from pds_jax.convert import diffusers

    config = skip_configuration(quick)
    params = random_params(config)
    with tempfile.TemporaryDirectory() as folder:
        diffusers.export(params, config, folder)
        unet = UNet2DModel.from_pretrained(f"{folder}/unet", low_cpu_mem_usage=False).eval()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 32, 32, 3), np.float32)
    sigma = np.geomspace(1, 50, batch).astype(np.float32)
    model = create_model(config)
    ours = jax.jit(lambda params, x, sigma: model.apply({"params": params}, x, sigma, train=False))
    placed = jax.device_put((params, x, sigma))
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(sigma)

    def run_theirs() -> Any:
        with torch.inference_mode():
            return unet(*theirs).sample.numpy()

    a, b = np.asarray(ours(*placed)), run_theirs().transpose(0, 2, 3, 1)
    difference = float((np.abs(a - b).max((1, 2, 3)) / np.abs(b).max((1, 2, 3))).max())
    seconds = in_turns({"ours": clock(lambda: ours(*placed)), "diffusers": clock(run_theirs)}, turns)
    return {
        "batch": batch,
        "flax_ms_an_image": 1e3 * float(np.median(seconds["ours"])) / batch,
        "diffusers_ms_an_image": 1e3 * float(np.median(seconds["diffusers"])) / batch,
        "relative_difference": difference,
        "torch_threads": torch.get_num_threads(),
        "network_over_diffusers": statistics.median(seconds["diffusers"] / seconds["ours"]),
    }


# --- (g): floating-point operations ----------------------------------------------------------------------------


def peaks() -> Iterator[tuple[str, float, Callable[[], Any]]]:
    """(name, operations of a call, call) of convolutions and matrix products that a machine does best."""
    key = jax.random.key(0)
    matrix = jax.random.normal(key, (1536, 1536))
    product = jax.jit(jnp.matmul)
    yield "matmul 1536", 2.0 * 1536**3, lambda: product(matrix, matrix)
    convolve = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    for batch, size, channels in ((16, 32, 128), (16, 16, 256), (4, 32, 256), (4, 16, 256)):
        x = jax.random.normal(key, (batch, size, size, channels))
        w = jax.random.normal(key, (3, 3, channels, channels))
        inside = (3 * size - 2) ** 2  # taps that fall inside the image, as XLA counts
        name = f"conv 3x3 {batch}x{size}x{size}x{channels}"
        yield name, 2.0 * batch * inside * channels**2, lambda x=x, w=w: convolve(x, w)


def measure_flops(batch: int, turns: int) -> dict[str, Any]:
    """The CIFAR-10 network's operations a second against the machine's best."""
    score_fn, _, shape = network("cifar10")
    run = evaluation(score_fn, shape, batch)
    x, t = jnp.zeros((batch, *shape)), jnp.ones((batch,))
    analysis = jax.jit(lambda score_fn, x, t: score_fn(x, t)).lower(score_fn, x, t).cost_analysis()
    operations = {"network": float(analysis["flops"])}
    timers = {"network": clock(run)}
    for name, count, call in peaks():
        operations[name], timers[name] = count, clock(call, 3)
    seconds = in_turns(timers, turns)
    rates = {name: operations[name] / float(np.median(seconds[name])) / 1e9 for name in timers}
    convolution = max(rate for name, rate in rates.items() if name.startswith("conv"))
    return {
        "GFLOP_an_image": operations["network"] / batch / 1e9,
        "GFLOP_per_second": rates,
        "network_ms_an_image": 1e3 * float(np.median(seconds["network"])) / batch,
        "over_convolution": rates["network"] / convolution,
        "over_matmul": rates["network"] / rates["matmul 1536"],
    }


# --- jobs in a process of their own ----------------------------------------------------------------------------


def job_operator() -> dict[str, Any]:
    """See measure_operator; apart, since networks of large images leave a large process behind."""
    return measure_operator(_NET.value, 1, 4, _TURNS.value)


def job_first_image() -> dict[str, Any]:
    """Seconds from the start of the process to an image on the host."""
    score_fn, sde, shape = network(_NET.value)
    parallel.sample(sampler(sde, shape, 2, True), sampling.image_keys([0]), score_fn)
    return {"seconds": time.time() - float(os.environ[_STARTED])}


def job_scaling() -> dict[str, Any]:
    """Images a second on the devices there are, eight images a device, 100 evaluations each."""
    score_fn, sde, shape = network(_NET.value)
    keys = sampling.image_keys(range(8 * jax.local_device_count()))
    run = sampler(sde, shape, 50, True)
    timer = clock(lambda: parallel.sample(run, keys, score_fn).x)
    return {"images_a_second": len(keys) / statistics.median(timer() for _ in range(3))}


def job_peak() -> dict[str, Any]:
    """Largest resident set of a process that samples four images."""
    score_fn, sde, shape = network(_NET.value)
    parallel.sample(sampler(sde, shape, 4, True), sampling.image_keys(range(4)), score_fn)
    return {"peak_bytes": peak_bytes()}


JOBS = {"operator": job_operator, "first_image": job_first_image, "scaling": job_scaling, "peak": job_peak}


def start(job: str, net: str, *, cores: int | None = None, devices: int = 1, **options: Any) -> dict[str, Any]:
    """Run a job in a process of its own, on some cores, with some devices (on a CPU)."""
    environment = {**os.environ, _STARTED: str(time.time())}
    if jax.default_backend() == "cpu" and devices > 1:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, __file__, f"--job={job}", f"--net={net}", *(f"--{k}={v}" for k, v in options.items())]
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])  # of this thread, which the process inherits
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        os.sched_setaffinity(0, allowed)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_scaling(net: str, turns: int) -> dict[str, Any]:
    """n devices on n cores against one device on one core; the processes take turns."""
    cores = len(os.sched_getaffinity(0))
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for _ in range(turns):
        for count in rates:
            found = start("scaling", net, cores=min(count, cores), devices=count)
            rates[count].append(found["images_a_second"])
    medians = {count: statistics.median(values) for count, values in rates.items()}
    return {
        "network": net,
        "cores": cores,
        "images_a_second": medians,
        "scaling": {count: rate / (min(count, cores) * medians[1]) for count, rate in medians.items()},
    }


def measure_start(net: str, turns: int) -> dict[str, Any]:
    """First and second start from a model's folder, with a compilation cache that was empty."""
    cold, warm = [], []
    with tempfile.TemporaryDirectory() as place:
        model = net
        if net not in ("photos", "digits"):
            model = f"{place}/model"
            checkpoints.save_model(model, random_params(configuration(net)), configuration(net))
        for turn in range(turns):
            for seconds in (cold, warm):
                seconds.append(start("first_image", model, cache_dir=f"{place}/{turn}")["seconds"])
    return {
        "network": net,
        "cold_seconds": statistics.median(cold),
        "warm_seconds": statistics.median(warm),
        "warm_over_cold": statistics.median(c / w for c, w in zip(cold, warm, strict=True)),
    }


# --- all of it -------------------------------------------------------------------------------------------------


def everything() -> dict[str, Any]:
    """All parts asked for, smallest first."""
    quick, turns, parts = _QUICK.value, _TURNS.value if not _QUICK.value else 2, set(_PARTS.value)
    found: dict[str, Any] = {"hardware": parallel.hardware(), "quick": quick, "turns": turns}

    def add(name: str, value: Any) -> None:
        found[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)

    if parts & {"a", "b"}:
        cases = [("digits", 64, 40, turns), ("photos", 16 if quick else 64, 10 if quick else 20, turns)]
        cases += [] if quick else [("cifar10", 4, 4, min(turns, 3))]
        add("sampler", [measure_sampler(*case) for case in cases])
        add("compiles_on_second_call", compiles_of_another_run())
    if "g" in parts:
        add("flops", measure_flops(4, turns))
    if "c" in parts:
        add("diffusers", measure_diffusers(4, min(turns, 3), quick))
    small = "tiny" if quick else "photos"
    if "d" in parts:
        add("devices", measure_scaling(small, 1 if quick else 2))
    if "e" in parts:
        nets = [small] if quick else ["photos", "cifar10", "cifar10_deep"]
        add("start", [measure_start(net, 1 if quick else 3) for net in nets])
    if "b" in parts:
        rows = [measure_operator("digits", 64, 100, turns), measure_operator("photos", 64, 100, turns)]
        if not quick:
            rows += [measure_operator("cifar10", 4, 100, turns)]
            rows += [start("operator", "256", turns=3), start("operator", "1024", turns=2)]
        add("operator", rows)
    if "f" in parts:
        nets = [small] if quick else ["photos", "cifar10"]
        # The second of two: the compiler's own memory is not the sampler's.
        add("peak", {net: [start("peak", net)["peak_bytes"] for _ in range(2)][1] for net in nets})
    return found


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The keys of the last line."""
    samplers, operators = found.get("sampler", []), found.get("operator", [])
    peak = {f"{row['network']} pixels": row["peak_bytes"] for row in operators if "peak_bytes" in row}
    peak |= found.get("peak", {})
    return {
        "sampler_over_network": {row["network"]: row["sampler_over_network"] for row in samplers},
        "pds_over_plain": {row["network"]: row["pds_over_plain"] for row in operators},
        "network_over_diffusers": (found.get("diffusers") or {}).get("network_over_diffusers"),
        "scaling": found.get("devices", {}).get("scaling"),
        "warm_over_cold": {row["network"]: row["warm_over_cold"] for row in found.get("start", [])},
        "peak_bytes": peak,
        "flops_over_peak": found.get("flops", {}).get("over_convolution"),
        "compiles_on_second_call": found.get("compiles_on_second_call"),
    }


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    facts, last = found["hardware"], summary(found)
    title = f"# Benchmark on {facts['devices']}"
    about = f"{facts['architecture']}, jax {facts['jax']}, float32; medians over {found['turns']} turns."
    parts = [title, about + (" **Quick run.**" if found["quick"] else ""), "Made by `python scripts/dev/benchmark.py`."]
    targets = {
        "sampler_over_network": "at most 1.03",
        "pds_over_plain": "at most 1.02",
        "network_over_diffusers": "at least 10 on a CPU",
        "scaling": "at least 0.9 where there are cores",
        "warm_over_cold": "at least 5",
        "flops_over_peak": "at least 0.75",
        "peak_bytes": "24 GiB at 1024 pixels",
        "compiles_on_second_call": "0",
    }
    rows = [{"figure": key, "target": targets[key], "found": _words(key, last[key])} for key in targets]
    parts.append(quality.markdown(rows))
    if found.get("sampler"):
        parts.append("## Sampler\n\n" + quality.markdown(found["sampler"]))
    if found.get("operator"):
        parts.append("## PDS\n\n" + quality.markdown(found["operator"]))
    if found.get("flops"):
        rates = [{"what": name, "GFLOP/s": rate} for name, rate in found["flops"]["GFLOP_per_second"].items()]
        parts.append("## Operations a second\n\n" + quality.markdown(rates))
    if found.get("diffusers"):
        parts.append("## diffusers' UNet2DModel\n\n" + quality.markdown([found["diffusers"]]))
    if found.get("start"):
        parts.append("## Start to first image\n\n" + quality.markdown(found["start"]))
    return "\n\n".join(parts) + "\n"


def _words(key: str, value: Any) -> str:
    if value is None or value == {}:
        return "not measured"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_words(key, item)}" for name, item in value.items())
    return f"{value / 2**30:.2f} GiB" if key == "peak_bytes" else f"{value:.3g}"


def draw_figure(found: dict[str, Any], path: pathlib.Path) -> None:
    """The ratios as bars beside their targets."""
    last = summary(found)
    bars = []
    most = {"sampler_over_network": 1.03, "pds_over_plain": 1.02}
    for key, goal in {**most, "scaling": 0.9, "flops_over_peak": 0.75}.items():
        value = last[key]
        for name, item in value.items() if isinstance(value, dict) else [("", value)]:
            if item is not None:
                sign = "≤" if key in most else "≥"
                bars.append((f"{key} {name} {sign} {goal}".replace("  ", " "), float(item), goal))
    if bars:
        figures.bars(bars, path, title=found["hardware"]["devices"])


def main(argv: list[str]) -> None:
    """Measure, print, write."""
    scripts.refuse_words(argv)
    use_compilation_cache(_CACHE.value)
    if _JOB.value is not None:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        print(json.dumps(JOBS[_JOB.value]()))
        return
    found = everything()
    text, last = table(found), summary(found)
    print("\n" + text)
    if _OUT.value:
        name = found["hardware"]["devices"].lower().replace(" ", "_") + ("_quick" if found["quick"] else "")
        folder = pathlib.Path(_OUT.value)
        files.write_json(folder / f"{name}.json", {**found, "summary": last})
        draw_figure(found, folder / f"{name}.png")
        if (folder / f"{name}.png").exists():
            text += f"\n![Ratios and their targets]({name}.png)\n"
        files.atomic_write(folder / f"{name}.md", lambda file: file.write(text.encode()))
    print(json.dumps(last))


if __name__ == "__main__":
    scripts.run(main)
