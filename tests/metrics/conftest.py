import json
import pathlib
import zlib
from collections.abc import Callable

import numpy as np
import pytest


def recipe_tensor(name: str, shape: list[int]) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    u = np.random.default_rng(zlib.crc32(name.encode())).random(tuple(shape))
    if name.endswith(".conv.weight"):
        return _convolution(u)
    if name.endswith(".bn.weight"):
        return (0.9 + 0.2 * u).astype(np.float32)
    if name.endswith(".bn.running_var"):
        return (0.5 + u).astype(np.float32)
    signed = 2.0 * u - 1.0
    return ((np.sqrt(3.0 / 2048.0) if name == "fc.weight" else 0.1) * signed).astype(np.float32)


def _convolution(u: np.ndarray) -> np.ndarray:
    """He-like weights; every filter but those on RGB loses half of its mean. Whole numbers, so exact."""
    fan_in = int(np.prod(u.shape[1:]))
    j = np.floor(u * 65536.0).astype(np.int64)
    if u.shape[1] == 3:
        whole = 4 * fan_in * j - 2 * 65535 * fan_in
    else:
        whole = 4 * fan_in * j - 2 * j.reshape(len(u), fan_in).sum(axis=1).reshape(-1, 1, 1, 1) - 65535 * fan_in
    return (whole.astype(np.float64) * (1.58 * np.sqrt(12.0 / fan_in) / (65536.0 * 4.0 * fan_in))).astype(np.float32)


def build(names: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Inception weights that anyone can rebuild: every tensor is a function of its name and shape alone."""
    return {name: recipe_tensor(name, shape) for name, shape in names.items()}


@pytest.fixture(scope="session")
def folder(golden: pathlib.Path) -> pathlib.Path:
    return golden / "metrics"


@pytest.fixture(scope="session")
def numbers(folder: pathlib.Path) -> dict:
    return json.loads((folder / "golden.json").read_text())


@pytest.fixture(scope="session")
def feats(folder: pathlib.Path) -> dict[str, np.ndarray]:
    found = {}
    for name in "abcd":
        with np.load(folder / f"feats_{name}.npz") as archive:
            found[name] = archive["feats"]
    return found


@pytest.fixture(scope="session")
def archive(folder: pathlib.Path) -> Callable[[str], dict[str, np.ndarray]]:
    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / name) as stored:
            return {key: stored[key] for key in stored.files}

    return read


@pytest.fixture(scope="session")
def state_dict(folder: pathlib.Path) -> dict[str, np.ndarray]:
    built = build(json.loads((folder / "inception_names.json").read_text()))
    expected = json.loads((folder / "inception_weights_crc32.json").read_text())
    assert {name: zlib.crc32(value.tobytes()) for name, value in built.items()} == expected
    return built


@pytest.fixture(scope="session")
def weights_file(state_dict: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("inception") / "weights.npz"
    np.savez(path, **state_dict)
    return path
