"""``pds_jax doctor``: print the versions, devices and cache of this installation, and run a self-test."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from pds_jax import checkpoints, parallel, sampling
from pds_jax.io import manifest
from pds_jax.io.images import load_png, save_png, to_uint8
from pds_jax.preconditioner import from_radius
from pds_jax.sde_lib import VESDE

_OPTIONAL = ("orbax-checkpoint", "diffrax", "matplotlib", "tensorflow-datasets", "torch")
_NFE = 20
_STD = 0.25


def doctor() -> bool:
    """Print versions, devices, cache, precision and the outcome of a small test; whether all is well."""
    for name, version in manifest.versions().items():
        print(f"{name:<18} {version}")
    for name in _OPTIONAL:
        print(f"{name:<18} {_version(name)}")
    force = manifest.in_force()
    print(f"{'platform':<18} {force['platform']}: {', '.join(parallel.devices())}")
    print(f"{'precision':<18} float32 unless --precision says otherwise; 64-bit mode {'on' if force['x64'] else 'off'}")
    print(f"{'cache':<18} {_cache(force['compilation_cache'])}")
    print(f"{'huge pages':<18} {_huge_pages()}")
    for name, value in force["environment"].items():
        print(f"{'environment':<18} {name}={value}")
    print(f"{'shipped models':<18} {', '.join(checkpoints.SHIPPED)}")
    return _self_test()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed (not needed to sample)"


def _cache(folder: str | None) -> str:
    if not folder:
        return "off: programs are compiled at every start"
    if "://" in folder:
        return folder
    entries = [path for path in pathlib.Path(folder).glob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in entries) / 2**20
    place = pathlib.Path(folder)
    while not place.exists():
        place = place.parent
    writable = "" if os.access(place, os.W_OK) else "; it cannot be written, so every start compiles"
    return f"{folder}: {len(entries)} files, {size:.0f} MiB{writable}"


def _huge_pages(setting: pathlib.Path = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> str:
    """Whether the C library's memory lies in huge pages."""
    if not setting.exists():
        return "not on this system"
    kernel = setting.read_text()
    if "[never]" in kernel:
        return f"off in the kernel ({setting})"
    if "[always]" in kernel or "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""):
        return "on"
    return "off; CPUs are faster after `export GLIBC_TUNABLES=glibc.malloc.hugetlb=1`"


def _score(sde: VESDE, x: jax.Array, t: jax.Array) -> jax.Array:
    """Of pixels of mean 0.5 and deviation _STD."""
    return (0.5 - x) / (_STD**2 + sde.std(t) ** 2)[:, None, None, None]


def _self_test() -> bool:
    """Draw from a Gaussian whose score is known, with PDS, on all devices, and write an image."""
    start, shape = time.perf_counter(), (8, 8, 1)
    try:
        sde = VESDE(sigma_min=0.01, sigma_max=5.0, N=_NFE)
        options: dict[str, Any] = {"grid": "edm", "variant": "exact", "preconditioner": from_radius(shape, 2, 1.1)}
        sampler = sampling.get_pc_sampler(sde, shape, "sde_dpmpp_2m", "none", **options)
        score = jax.tree_util.Partial(_score, sde)
        keys = sampling.image_keys(range(64))
        parallel.warm_up(sampler, keys, score)
        compiling = time.perf_counter() - start
        drawn = np.asarray(parallel.sample(sampler, keys, score).x)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "image.png"
            save_png(path, drawn[0])
            written = (load_png(path) == to_uint8(drawn[0])).all()
        checkpoints.load_any("digits")
    except Exception as error:  # whatever fails is what this test is for
        print(f"{'self-test':<18} FAILED: {type(error).__name__}: {error}")
        return False
    seconds, std = time.perf_counter() - start, float(drawn.std())
    good = bool(written) and abs(std - _STD) < 0.1 * _STD
    found = f"{len(drawn)} samples of deviation {std:.3f}, exactly {_STD}"
    took = f"{seconds:.1f} s, {compiling:.1f} of them compiling or reading the cache"
    print(f"{'self-test':<18} {'passed' if good else 'FAILED'} in {took}: {found}")
    return good
