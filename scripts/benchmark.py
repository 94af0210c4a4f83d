"""What sampling costs beyond the network, as ratios taken within one run.

    python scripts/benchmark.py --models=photos,digits

For each model, in turns that share whatever else the machine is doing: the bare network, the sampler without PDS, the
sampler with PDS (frequency filter). Ratios are medians over the turns. The last line is JSON:

    pds_over_plain            seconds with PDS over seconds without, at equal NFE
    sampler_over_network      seconds without PDS over NFE times the bare network's seconds
    compiles_on_second_call   programs compiled by a second run with another alpha, number of steps, snr and seeds
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from pds_jax import assembly, parallel, quality, sampling
from pds_jax.cache import use_compilation_cache

_MODELS = flags.DEFINE_list("models", ["photos", "digits"], "Shipped models.")
_BATCH = flags.DEFINE_integer("batch", 64, "Images at once.")
_NFE = flags.DEFINE_integer("nfe", 80, "Network evaluations of a run.")
_TURNS = flags.DEFINE_integer("turns", 7, "Turns; the ratios are medians over them.")
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def network_seconds(trained: assembly.Trained, batch: int, calls: int) -> Callable[[], float]:
    """A timer of the bare network: seconds of one evaluation of a batch."""
    x = jax.random.normal(jax.random.key(0), (batch, *trained.shape), jnp.float32)
    t = jnp.full((batch,), 0.5, jnp.float32)
    evaluate = jax.jit(lambda score_fn, x, t: score_fn(x, t))
    evaluate(trained.score_fn, x, t).block_until_ready()

    def timer() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            evaluate(trained.score_fn, x, t).block_until_ready()
        return (time.perf_counter() - start) / calls

    return timer


def sampler_seconds(trained: assembly.Trained, plan: assembly.Plan, batch: int) -> Callable[[], float]:
    """A timer of a whole run of the sampler."""
    keys = sampling.image_keys(range(batch))
    parallel.sample(plan.sampler, keys, trained.score_fn)

    def timer() -> float:
        start = time.perf_counter()
        parallel.sample(plan.sampler, keys, trained.score_fn)
        return time.perf_counter() - start

    return timer


def compiles_of_another_run(trained: assembly.Trained, batch: int, nfe: int) -> int:
    """Programs compiled when everything that is traced changes."""
    count = 0

    def listen(event: str, duration: float, **_: Any) -> None:
        nonlocal count
        count += event == _COMPILE_EVENT

    plan = assembly.plan(trained, nfe=nfe // 2, alpha=7.0, snr=0.1)
    keys = sampling.image_keys(range(1000, 1000 + batch))
    jax.monitoring.register_event_duration_secs_listener(listen)
    parallel.sample(plan.sampler, keys, trained.score_fn)
    found, count = count, 0
    jax.monitoring.clear_event_listeners()
    return found


def measure(name: str, batch: int, nfe: int, turns: int) -> dict[str, Any]:
    """All figures of one model."""
    trained = assembly.load(name)
    plain = assembly.plan(trained, nfe=nfe)
    preconditioned = assembly.plan(trained, nfe=nfe, alpha=5.0, filters="freq")
    timers = (
        network_seconds(trained, batch, max(nfe // 4, 1)),
        sampler_seconds(trained, plain, batch),
        sampler_seconds(trained, preconditioned, batch),
    )
    rows = np.array([[timer() for timer in timers] for _ in range(turns)])
    network, without, with_pds = rows.T
    return {
        "model": name,
        "NFE": plain.nfe,
        "network_ms": float(1000 * np.median(network)),
        "plain_s": float(np.median(without)),
        "pds_s": float(np.median(with_pds)),
        "sampler_over_network": statistics.median(without / (plain.nfe * network)),
        "pds_over_plain": statistics.median(with_pds / without),
        "compiles_on_second_call": compiles_of_another_run(trained, batch, nfe),
    }


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    use_compilation_cache(None)
    rows = [measure(name, _BATCH.value, _NFE.value, _TURNS.value) for name in _MODELS.value]
    devices = ", ".join(str(device) for device in jax.local_devices())
    print(f"PC, batch {_BATCH.value}, {_TURNS.value} turns; {devices}; {platform.machine()}; jax {jax.__version__}\n")
    print(quality.markdown(rows))
    keys = ("pds_over_plain", "sampler_over_network", "compiles_on_second_call")
    print(json.dumps({key: {row["model"]: row[key] for row in rows} for key in keys}))


if __name__ == "__main__":
    app.run(main)
