"""Arrays from files that nobody vouches for."""

import numpy as np
import pytest

from pds_jax.io.npy import read_npy, read_npz
from pds_jax.types import PdsError


@pytest.mark.parametrize(
    "array",
    [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.float32(3), np.zeros((0, 2))],
)
def test_reads_what_numpy_writes(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    read = read_npy(tmp_path / "a.npy")
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.asarray(array).dtype and read.flags.writeable
    np.savez_compressed(tmp_path / "a.npz", first=array, second=array)
    both = read_npz(tmp_path / "a.npz")
    assert sorted(both) == ["first", "second"]
    np.testing.assert_array_equal(both["second"], array)


def test_any_damage_to_a_header_is_one_kind_of_error(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6, dtype=np.float32).reshape(2, 3))
    data = path.read_bytes()
    outcomes = set()
    for position in range(128):
        for value in (0, 40, 45, 57, 255):
            damaged = bytearray(data)
            damaged[position] = value
            path.write_bytes(damaged)
            try:
                outcomes.add(read_npy(path).dtype.kind)
            except PdsError as error:
                assert "a.npy" in str(error)
                outcomes.add("error")
    assert "error" in outcomes
