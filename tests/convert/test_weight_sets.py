"""Which weights are read from the layouts in which people save them, and which files are refused as ambiguous."""

import argparse
import collections
import dataclasses
import datetime
import enum
import pathlib
import sys
import types
import warnings

import numpy as np
import pytest
from convert_cases import PIPE, TORCH, assert_same_tree, config_from, need_torch, random_params, skip_config

from pds_jax import checkpoints, convert
from pds_jax.convert.names import FROZEN, torch_pairs
from pds_jax.convert.score_sde_torch import to_torch
from pds_jax.convert.tree import flatten, nest, template

FOURIER = "all_modules.0.W"


@pytest.fixture(scope="module")
def config():
    return config_from(TORCH / "ncsnpp_ve.config.json")


@pytest.fixture(scope="module")
def averaged(config):
    return random_params(config)


@pytest.fixture(scope="module")
def raw(averaged):
    """Half of the averaged ones, the frozen frequencies apart."""
    return nest({path: value * (1.0 if path == FROZEN else 0.5) for path, value in flatten(averaged).items()})


def tensors(params, config, prefix="", dtype=None):
    torch = need_torch()
    arrays = to_torch(flatten(params), torch_pairs(config, template(config)))
    return collections.OrderedDict((prefix + name, torch.tensor(value, dtype=dtype)) for name, value in arrays.items())


def sigmas(config):
    levels = np.geomspace(config.model.sigma_max, config.model.sigma_min, config.model.num_scales)
    return need_torch().tensor(levels)


def load(tmp_path, state, config, use_ema=True):
    path = tmp_path / "model.pth"
    need_torch().save(state, path)
    return convert.load_checkpoint(path, config, use_ema=use_ema)


def trainable(named):
    return [value for name, value in named.items() if not name.endswith(FOURIER)]


def squashed(named):
    return {name.replace(".", ""): value for name, value in named.items()}


# name: (raw weights by name, averaged weights by name, sigmas) -> what is saved
WITH_BOTH = {
    "score_sde_pytorch": lambda r, e, s: {
        "model": {"module.sigmas": s, **prefixed("module.", r)},
        "ema": {"decay": 0.999, "num_updates": 3, "shadow_params": trainable(e)},
    },
    "a list that holds the frozen parameter": lambda r, e, s: {"model": r, "ema": {"shadow_params": list(e.values())}},
    "a list of the whole state": lambda r, e, s: {
        "model": {"sigmas": s, **r},
        "ema": {"shadow_params": [s, *e.values()]},
    },
    "a list beside collected parameters": lambda r, e, s: {
        "model": r,
        "ema": {"shadow_params": trainable(e), "collected_params": trainable(r)},
    },
    "ema": lambda r, e, s: {"model": r, "ema": e, "opt": {"state": {}}, "args": argparse.Namespace(lr=1)},
    "model_ema": lambda r, e, s: {"model": r, "model_ema": prefixed("module.", e), "epoch": 3},
    "ema_state_dict": lambda r, e, s: {"state_dict": r, "ema_state_dict": e},
    "state_dict_ema": lambda r, e, s: {"state_dict": r, "state_dict_ema": e},
    "params_ema": lambda r, e, s: {"params": r, "params_ema": e},
    "ema_model in a dictionary of its own": lambda r, e, s: {
        "model": prefixed("model.", r),
        "ema": {**prefixed("ema_model.model.", e), **prefixed("online_model.model.", r), "initted": s[:1] > 0},
    },
    "shadow by name, without what is frozen": lambda r, e, s: {
        "model": prefixed("module.", r),
        "ema": {"shadow": {name: value for name, value in e.items() if name != FOURIER}},
    },
    "one flat dictionary": lambda r, e, s: {**prefixed("model.", r), **prefixed("ema.module.", e)},
    "lightning": lambda r, e, s: {
        "pytorch-lightning_version": "2.1.0",
        "state_dict": {**prefixed("net.", r), **prefixed("net_ema.module.", e), "loss.scale": s[:3].float()},
        "optimizer_states": [{"state": {0: {"exp_avg": s[:3].float(), "step": 1}}, "param_groups": []}],
        "callbacks": {},
    },
    "lightning's weight averaging": lambda r, e, s: {
        "state_dict": prefixed("net.", e),
        "current_model_state": prefixed("net.", r),
        "averaging_state": {"n_averaged": s[0].long()},
    },
    "composer": lambda r, e, s: {
        "state": {"model": prefixed("module.", r), "algorithms": [("EMA", {"ema_model": {"parameters": e}})]}
    },
    "latent diffusion": lambda r, e, s: {
        "state_dict": {
            **prefixed("model.", r),
            **prefixed("model_ema.", squashed(e)),
            "model_ema.decay": s[0] * 0 + 0.9,
        }
    },
    "a list of states": lambda r, e, s: [prefixed("module.", r), {"state": {}, "param_groups": []}, 3, 7, e],
    "AveragedModel": lambda r, e, s: {"model": r, "swa_model": {"n_averaged": s[0].long(), **prefixed("module.", e)}},
    "wrapped again and again": lambda r, e, s: {
        "model": prefixed("module._orig_mod.", r),
        "model_ema": prefixed("_orig_mod.module.module.", e),
    },
    "compiled blocks": lambda r, e, s: {
        "net": {name.replace(".Conv_0.", "._orig_mod.Conv_0._orig_mod."): value for name, value in r.items()},
        "ema_net": e,
    },
    "an average that keeps the raw weights for later": lambda r, e, s: {
        "model": r,
        "ema": {"shadow": prefixed("module.", e), "backup": halved(r)},
    },
    "a numbered average": lambda r, e, s: {"model": r, "ema": {"shadow": dict(enumerate(trainable(e)))}},
    "a list that the optimiser keeps": lambda r, e, s: {
        "state_dict": prefixed("model.", r),
        "optimizer_states": [{"state": {0: {"exp_avg": s, "step": 1}}, "ema": trainable(e)}],
    },
    "an average beside its decay": lambda r, e, s: {"model": r, "ema": (0.999, trainable(e))},
    "an object that keeps the average": lambda r, e, s: {"model": r, "ema": Helper(e)},
}


class Helper:
    def __init__(self, shadow):
        self.decay, self.shadow = 0.99, shadow


def prefixed(prefix, named):
    return collections.OrderedDict((prefix + name, value) for name, value in named.items())


@pytest.mark.parametrize("name", WITH_BOTH)
def test_the_average_is_read_and_the_raw_weights_when_asked_for(tmp_path, config, averaged, raw, name):
    state = WITH_BOTH[name](tensors(raw, config), tensors(averaged, config), sigmas(config))
    for use_ema, expected in ((True, averaged), (False, raw)):
        found, report = load(tmp_path, state, config, use_ema)
        assert_same_tree(expected, found)
        assert report.weights == ("ema" if use_ema else "raw")
        assert any(f"read the {'moving average' if use_ema else 'raw weights'}" in note for note in report.notes)


ALONE = {
    "bare": lambda w, s: w,
    "bare, of DataParallel": lambda w, s: prefixed("module.", w),
    "bare, compiled": lambda w, s: prefixed("_orig_mod.", w),
    "bare, compiled and parallel": lambda w, s: prefixed("module._orig_mod.", w),
    "with its noise levels": lambda w, s: {"sigmas": s, **w},
    "state_dict": lambda w, s: {"state_dict": prefixed("model.", w), "epoch": 1},
    "net in model": lambda w, s: {"model": {"net": w}},
    "in a tuple": lambda w, s: (w, {"lr": 1e-4}),
    "with a schedule": lambda w, s: {**prefixed("model.", w), "betas": s.float(), "alphas_cumprod": s.float()},
    "twice the same": lambda w, s: {"model": w, "best": w},
}


@pytest.mark.parametrize("name", ALONE)
def test_weights_alone_are_read_and_said_to_be_no_average(tmp_path, config, averaged, name):
    found, report = load(tmp_path, ALONE[name](tensors(averaged, config), sigmas(config)), config)
    assert_same_tree(averaged, found)
    assert report.weights == "raw" and any("no moving average in the file" in note for note in report.notes)


def save_module(named, path):
    """Pickle a whole torch.nn.Module whose class nobody can import later."""
    torch = need_torch()

    class Net(torch.nn.Module):
        pass

    Net.__module__, Net.__qualname__ = "my_model", "Net"
    module = types.ModuleType("my_model")
    module.Net = Net
    sys.modules["my_model"] = module
    try:
        net = Net()
        for name, value in named.items():
            place = net
            *parents, leaf = name.split(".")
            for parent in parents:
                if parent not in dict(place.named_children()):
                    place.add_module(parent, Net())
                place = getattr(place, parent)
            place.register_parameter(leaf, torch.nn.Parameter(value))
        torch.save(net, path)
    finally:
        del sys.modules["my_model"]


def test_a_whole_module_is_read_without_its_class(tmp_path, config, averaged):
    save_module(tensors(averaged, config), tmp_path / "model.pth")
    assert_same_tree(averaged, convert.load_checkpoint(tmp_path / "model.pth", config)[0])


class Phase(enum.Enum):
    TRAIN = 1


@dataclasses.dataclass
class Settings:
    lr: float = 1e-4
    folder: pathlib.Path = pathlib.Path("/tmp")


class Slots:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a, self.b = 1, [2]


class Words(dict):
    pass


def harmless():
    rng = np.random.default_rng(0)
    return {
        "args": argparse.Namespace(lr=1e-4, nested=argparse.Namespace(x=[1, 2])),
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "path": pathlib.PurePosixPath("a/b"),
        "scalars": [np.float32(1), np.float64(2), np.int64(3), np.bool_(True), np.float16(1)],
        "array": rng.normal(size=(300, 300)),
        "words": np.array(["a", "b"]),
        "objects": np.array([{}, None], object),
        "rng": np.random.RandomState(0).get_state(),
        "generator": rng,
        "counter": collections.Counter("abca"),
        "deque": collections.deque([1, 2], 3),
        "defaultdict": collections.defaultdict(list, {"a": [1]}),
        "ordered": collections.OrderedDict(a=1),
        "set": {1, 2},
        "frozen": frozenset({"a"}),
        "complex": 1 + 2j,
        "range": range(3),
        "slice": slice(1, 2),
        "phase": Phase.TRAIN,
        "settings": Settings(),
        "slots": Slots(),
        "dictionary": Words(a=1),
        "function": np.mean,
        "class": Settings,
        "odd keys": {1.5: 1, (1, 2): 2, Phase.TRAIN: 3, None: 4},
        "bytes": b"abc",
        "bytearray": bytearray(b"abc"),
        "error": ValueError("x"),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_harmless_objects_are_passed_over(tmp_path, config, averaged, protocol, legacy):
    torch = need_torch()
    others = {
        "device": torch.device("cpu"),
        "dtype": torch.int16,
        "size": torch.Size([1, 2]),
        "complex tensor": torch.zeros(3, dtype=torch.complex64),
        "sparse tensor": torch.eye(3).to_sparse(),
        "state": torch.get_rng_state(),
        "optimizer": torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))]),
    }
    state = {**harmless(), **others, "model": tensors(averaged, config), "ema": None}
    path = tmp_path / "model.pth"
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    assert_same_tree(averaged, convert.load_checkpoint(path, config)[0])


def test_a_quantised_tensor_is_passed_over(tmp_path, config, averaged):
    torch = need_torch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        assert_same_tree(averaged, load(tmp_path, {"model": tensors(averaged, config), "q": quantised}, config)[0])


def test_an_object_is_never_made(tmp_path, config, averaged):
    made = []

    class Trap:
        def __init__(self):
            made.append("init")

        def __setstate__(self, state):
            made.append("state")

        def __reduce__(self):
            return Trap, (), {"a": 1}

    Trap.__module__, Trap.__qualname__ = "my_traps", "Trap"
    module = types.ModuleType("my_traps")
    module.Trap = Trap
    sys.modules["my_traps"] = module
    try:
        state = {"model": tensors(averaged, config), "extra": Trap()}
        made.clear()
        found, _ = load(tmp_path, state, config)
    finally:
        del sys.modules["my_traps"]
    assert not made
    assert_same_tree(averaged, found)


REFUSED = {
    "two averages": (lambda r, e: {"model": r, "ema_0.999": e, "ema_0.9999": halved(e)}, "2 moving averages.*ema_0"),
    "two sets of weights": (lambda r, e: {"model": r, "best_model": e}, "2 sets of weights.*'model', 'best_model'"),
    "an average of another network": (
        lambda r, e: {"model": r, "ema": {"layer.weight": e[FOURIER]}},
        "called a moving average",
    ),
    "a list that is too short": (lambda r, e: {"model": r, "ema": trainable(e)[1:]}, "155 tensors, the model 156"),
    "no weights": (lambda r, e: {"loss": [1.0, 2.0], "step": 3}, "there are no arrays in it"),
    "another program's": (
        lambda r, e: {"state_dict": {"layer1.conv.weight": e[FOURIER], "layer1.conv.bias": e[FOURIER]}},
        "holds arrays in 'state_dict' \\(2\\).*config",
    ),
    "a name with and without its wrapper": (lambda r, e: {**prefixed("module.", r), **e}, "twice, with and without"),
    "a layer too many": (lambda r, e: {"model": {**r, "all_modules.99.weight": e[FOURIER]}}, "left over"),
}


def halved(named):
    return {name: value / 2 for name, value in named.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_or_of_another_network_is_refused(tmp_path, config, averaged, raw, name):
    build, message = REFUSED[name]
    with pytest.raises(convert.ConversionError, match=message):
        load(tmp_path, build(tensors(raw, config), tensors(averaged, config)), config)


def test_raw_weights_that_are_not_there_are_refused(tmp_path, config, averaged):
    with pytest.raises(convert.ConversionError, match="holds the moving average 'ema' only"):
        load(tmp_path, {"ema": tensors(averaged, config)}, config, use_ema=False)


@pytest.mark.parametrize("ema", [[], None, {"shadow_params": [1.0]}, "too short", "mixed"])
def test_a_broken_average_does_not_keep_from_the_raw_weights(tmp_path, config, averaged, raw, ema):
    named = trainable(tensors(averaged, config))
    ema = {"too short": named[1:], "mixed": [*named[1:], 1.0]}[ema] if isinstance(ema, str) else ema
    found, report = load(tmp_path, {"model": tensors(raw, config), "ema": ema}, config, use_ema=False)
    assert_same_tree(raw, found)
    assert report.weights == "raw"


def test_a_file_that_nests_without_end_is_refused(tmp_path, config):
    nested = [1]
    for _ in range(40):
        nested = [nested, nested]
    with pytest.raises(convert.ConversionError, match="nests more than"):
        load(tmp_path, {"model": nested}, config)


def test_a_container_inside_itself_is_passed_over(tmp_path, config, averaged):
    around = {"model": tensors(averaged, config)}
    around["self"] = around
    assert_same_tree(averaged, load(tmp_path, around, config)[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_cast_with_a_line_that_says_so(tmp_path, config, averaged, dtype):
    torch = need_torch()
    named = tensors(averaged, config, dtype=getattr(torch, dtype))
    found, report = load(tmp_path, named, config)
    expected = named["all_modules.1.weight"].float().numpy().T
    np.testing.assert_array_equal(flatten(found)["Dense_0/kernel"], expected)
    assert f"157 of 157 leaves are {dtype}; they became float32" in report.notes


@pytest.mark.parametrize("names", ["score_sde_pytorch", "score_sde", "score_sde by dots", "diffusers"])
def test_safetensors_without_a_configuration_are_known_by_their_names(tmp_path, names):
    from safetensors.numpy import load_file, save_file

    config = skip_config()
    params = random_params(config)
    if names == "score_sde_pytorch":
        arrays = {"model." + k: v for k, v in to_torch(flatten(params), torch_pairs(config, template(config))).items()}
    elif names == "diffusers":
        params, _ = convert.load_checkpoint(PIPE, config)
        arrays = load_file(PIPE / "unet" / "diffusion_pytorch_model.safetensors")
    else:
        arrays = {f"params/{path}": value for path, value in flatten(params).items()}
        if "dots" in names:
            arrays = {name.replace("/", "."): value for name, value in arrays.items()}
    save_file(arrays, tmp_path / "weights.safetensors")
    assert_same_tree(params, convert.load_checkpoint(tmp_path / "weights.safetensors", config)[0])
    found = checkpoints.load_any(tmp_path / "weights.safetensors", config)
    assert found.digest == checkpoints.digest_of(params)


def test_a_list_without_names_is_not_taken_for_a_unet(tmp_path):
    """EMAModel of diffusers saves its parameters in the order of the module, which only the module knows."""
    torch, config = need_torch(), skip_config()
    values = [torch.zeros(3), torch.zeros(2)]
    torch.save({"decay": 0.9999, "shadow_params": values}, tmp_path / "custom_checkpoint_0.pkl")
    with pytest.raises(convert.ConversionError, match="2 tensors, the model"):
        convert.load_checkpoint(tmp_path / "custom_checkpoint_0.pkl", config)


def test_a_pth_with_the_names_of_diffusers_is_read(tmp_path):
    torch = need_torch()
    from safetensors.torch import load_file

    config = skip_config()
    torch.save({"unet": load_file(PIPE / "unet" / "diffusion_pytorch_model.safetensors")}, tmp_path / "unet.pth")
    found, report = convert.load_checkpoint(tmp_path / "unet.pth", config)
    assert_same_tree(convert.load_checkpoint(PIPE, config)[0], found)
    assert any("config.json" in note for note in report.notes)
