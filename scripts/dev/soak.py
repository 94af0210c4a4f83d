"""A long run watched from outside: memory, open files, and going on after SIGTERM.

    python scripts/dev/soak.py --images=50000 --workdir=/tmp/soak

Samples digits with PDS by the command line, in batches of 64. Once a second the resident set and the open files of the
process are read. Halfway it gets SIGTERM and is started again. Flat means: the medians of the first and the last fifth
of the readings of each process, those before its first batch left out, differ by at most 2 %. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import flags

from pds_jax.cli import scripts

_IMAGES = flags.DEFINE_integer("images", 50_000, "How many.")
_WORKDIR = flags.DEFINE_string("workdir", "/tmp/pds_soak", "Folder of the run.")
_SPEED_UP = flags.DEFINE_float("speed_up", 100.0, "Iterations are 1000 over this.")


def command() -> list[str]:
    """What a user would type."""
    return [
        sys.executable, "-m", "pds_jax.main", "--mode=sample", "--checkpoint=digits", f"--workdir={_WORKDIR.value}",
        f"--seeds=0-{_IMAGES.value - 1}", f"--speed_up={_SPEED_UP.value}", "--corrector=none", "--alpha=5",
        "--batch_size=64",
    ]  # fmt: skip


def reading(pid: int) -> tuple[int, int]:
    """(resident bytes, open files) of a process."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return 1024 * int(line.split()[1]), len(os.listdir(f"/proc/{pid}/fd"))
    raise ProcessLookupError(pid)


def shards() -> int:
    """Batches that are done."""
    folder = pathlib.Path(_WORKDIR.value) / "samples" / "shards"
    return sum(name.endswith(".json") for name in os.listdir(folder)) if folder.is_dir() else 0


def watch(stop_at: int | None) -> dict[str, Any]:
    """Run until the end, or until so many batches and then SIGTERM."""
    before, rows = shards(), []
    process = subprocess.Popen(command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    start, stopped = time.monotonic(), None
    total = -(-_IMAGES.value // 64)
    while process.poll() is None:
        time.sleep(1)
        done = shards()
        try:
            # The last batch of all is followed by checking every file, which is another kind of work.
            if before + 2 < done < total and stopped is None:
                rows.append((done, *reading(process.pid)))
        except (OSError, ProcessLookupError):
            continue
        if stop_at is not None and done >= stop_at and stopped is None:
            process.send_signal(signal.SIGTERM)
            stopped = time.monotonic()
    if process.returncode != 0:
        raise SystemExit(f"the run ended with {process.returncode}")
    fifth = max(len(rows) // 5, 1)
    memory, handles = [row[1] for row in rows], [row[2] for row in rows]
    first, last = statistics.median(memory[:fifth]), statistics.median(memory[-fifth:])
    return {
        "batches": shards() - before,
        "seconds": round(time.monotonic() - start, 1),
        "readings": len(rows),
        "first_bytes": first,
        "last_bytes": last,
        "most_bytes": max(memory),
        "growth": last / first - 1,
        "handles": [min(handles), max(handles)],
        "seconds_to_stop": None if stopped is None else round(time.monotonic() - stopped, 1),
    }


def main(argv: list[str]) -> None:
    """Run twice, print."""
    scripts.refuse_words(argv)
    parts = []
    for stop_at in (shards() + (-(-_IMAGES.value // 64) - shards()) // 2, None):
        parts.append(watch(stop_at))
        print(json.dumps(parts[-1]), flush=True)
    manifest = json.loads((pathlib.Path(_WORKDIR.value) / "samples" / "manifest.json").read_text())
    flat = all(abs(part["growth"]) <= 0.02 for part in parts)
    whole = manifest["state"] == "complete" and manifest["images"] == _IMAGES.value
    print(json.dumps({"images": _IMAGES.value, "complete": whole, "flat": flat, "processes": parts}))
    if not (flat and whole):
        raise SystemExit(1)


if __name__ == "__main__":
    scripts.run(main)
