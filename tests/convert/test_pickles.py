"""The pickle machine: nothing is run, whatever the pickle asks for."""

import collections
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
from convert_cases import torch_config

from pds_jax import convert
from pds_jax.convert import pickles
from pds_jax.convert.pickles import Machine, Storage, Tensor

STORAGE = Storage("0", "float32", 12)


def run(data):
    return Machine(lambda _: STORAGE).run(data)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_values_come_back(protocol):
    value = {
        "a": [1, -2, 3.5, None, True, False, "text", 2**70, -(2**40)],
        "b": ((), (1,), (1, 2), (1, 2, 3), tuple(range(9))),
        "c": collections.OrderedDict(x=[], y={}),
        "again": [],
    }
    value["again"] = value["a"]
    back = run(pickle.dumps(value, protocol=protocol))
    assert back == value and back["again"] is back["a"]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("scalar", [np.float64(2e-4), np.float32(1.5), np.int64(-7), np.bool_(True)])
def test_numpy_scalars_become_numbers(protocol, scalar):
    assert run(pickle.dumps({"lr": scalar}, protocol=protocol)) == {"lr": scalar.item()}


class Evil:
    """What a hostile pickle would call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile(marker):
    command = f"touch {marker}"
    return {
        "os.system": Evil(os.system, command),
        "eval": Evil(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Evil(exec, f"open({str(marker)!r}, 'w')"),
        "open": Evil(open, str(marker), "w"),
        "subprocess": Evil(subprocess.check_call, ["touch", str(marker)]),
        "numpy.load": Evil(np.load, str(marker)),
    }


def checkpoint(path, payload, protocol):
    """A zip archive as torch.save makes it, with a hostile object among the optimizer's."""
    state = {"optimizer": {"state": payload}, "model": {}, "ema": {}, "step": 0}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(state, protocol=protocol))
        archive.writestr("a/version", b"3\n")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", hostile(""))
def test_code_is_never_run(tmp_path, name, protocol):
    marker = tmp_path / "ran"
    checkpoint(tmp_path / "m.pth", hostile(marker)[name], protocol)
    with pytest.raises(convert.ConversionError, match="not on the list of names"):
        convert.load_checkpoint(tmp_path / "m.pth", torch_config())
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cos\nsystem\n.",  # a name alone
        b"(S'touch x'\nios\nsystem\n.",  # INST
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pname\n.",  # PERSID
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # BYTEARRAY8 of 8 exabytes
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # BINBYTES8
    ],
)
def test_opcodes_that_no_checkpoint_needs_are_refused(data):
    with pytest.raises((convert.ConversionError, ValueError)):
        run(data)


def test_a_known_name_cannot_be_bent_into_another():
    for name in ("torch._utils", "collections.OrderedDict.fromkeys", "numpy.dtype.__class__", "builtins.eval"):
        module, _, attribute = name.rpartition(".")
        with pytest.raises(convert.ConversionError, match="not on the list"):
            run(b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b".")


def test_a_huge_memo_index_allocates_nothing():
    assert run(b"\x80\x02Nr\xff\xff\xff\xff.") is None


def test_exponential_keys_are_refused_at_once():
    """A tuple of tuples, doubled sixty times: hashing it as a key would never end."""
    doubled = b"\x80\x02K\x01" + b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(60)) + b"q\x3c}h\x3cNs."
    with pytest.raises(convert.ConversionError, match="dictionary key"):
        run(doubled)


def test_endless_pickles_end(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_OPCODES", 1000)
    with pytest.raises(convert.ConversionError, match="more than 1000 opcodes"):
        run(b"\x80\x02" + b"N" * 5000 + b".")


def tensor_pickle(offset, shape, strides):
    """_rebuild_tensor_v2(storage, offset, shape, strides, False, None)."""

    def numbers(values):
        return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"

    call = b"NQI%d\n" % offset + numbers(shape) + numbers(strides) + b"I00\nN"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + call + b"tR."


def test_a_tensor_inside_its_storage_is_accepted():
    assert run(tensor_pickle(0, (3, 4), (4, 1))) == Tensor(STORAGE, 0, (3, 4), (4, 1))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (1, (3, 4), (4, 1)),
        (0, (3, 4), (5, 1)),
        (-1, (3, 4), (4, 1)),
        (0, (3, -4), (4, 1)),
        (0, (3, 4), (-4, 1)),
        (0, (3,), (4, 1)),
        (2**60, (1,), (1,)),
        (0, (2**62, 2**62), (0, 0)),
        (0, (1,) * 99, (1,) * 99),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(offset, shape, strides):
    with pytest.raises(convert.ConversionError):
        run(tensor_pickle(offset, shape, strides))
