import json

import numpy as np
import pytest
from convert_cases import PTH, TORCH, assert_same_tree, forward, need_torch, random_params, relative, torch_config
from convert_cases import config_from as read_config

from pds_jax import convert
from pds_jax.convert.names import FROZEN, torch_pairs
from pds_jax.convert.tree import flatten, source_shape, template
from pds_jax.types import PdsError


@pytest.mark.parametrize("name", PTH)
def test_names_order_and_shapes_are_those_of_the_recorded_models(name):
    config = torch_config(name)
    shapes = template(config)
    recorded = json.loads((TORCH / f"{name}.params.json").read_text())["ema_shadow_params_order"]
    ours = [
        ("module." + pair.source, list(source_shape(shapes[pair.target], pair)))
        for pair in torch_pairs(config, shapes)
        if pair.target != FROZEN
    ]
    assert ours == [(leaf["name"], leaf["shape"]) for leaf in recorded]


@pytest.mark.parametrize("name", PTH)
@pytest.mark.parametrize("use_ema", [True, False])
def test_forward_equals_the_recorded_outputs(name, use_ema):
    config = torch_config(name)
    io = np.load(TORCH / f"{name}.io.npz")
    params, report = convert.load_checkpoint(TORCH / PTH[name], config, use_ema=use_ema)
    expected = io["out_ema" if use_ema else "out_model_weights"]
    assert relative(forward(config, params, io["x"], io["labels"]), expected) < 1e-5
    assert len(report.mapped) == len(template(config))
    assert report.weights == ("ema" if use_ema else "raw")


def test_the_report_names_every_leaf():
    _, report = convert.load_checkpoint(TORCH / "ncsnpp_ve.pth", torch_config())
    text = str(report)
    assert "mapped   ResnetBlockBigGANpp_0/Conv_0/kernel <- all_modules.4.Conv_0.weight" in text
    assert "reshaped Dense_0/kernel (32, 16) -> (16, 32)" in text
    assert "unused   sigmas" in text and "unused   optimizer" in text
    assert report.notes == ["read the moving average 'ema/shadow_params', not the raw weights 'model'"]
    listed = (report.mapped, report.reshaped, report.unused, report.notes)
    assert len(text.splitlines()) == 2 + sum(map(len, listed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nf": 16}, r"'all_modules.0.W' has shape \(8,\).*\(16,\)"),
        ({"num_res_blocks": 2}, "missing"),
        ({"progressive_input": "none"}, "left over|missing|shape"),
        ({"embedding_type": "positional", "scale_by_sigma": False}, "missing|left over|shape"),
        ({"sigma_max": 378}, "noise levels 50 to 0.01"),
        ({"name": "nonsense"}, "model.name"),
    ],
)
def test_another_config_is_refused_with_the_reason(change, message):
    config = read_config(TORCH / "ncsnpp_ve.config.json", **change)
    with pytest.raises(PdsError, match=message):
        convert.load_checkpoint(TORCH / "ncsnpp_ve.pth", config)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_noise_levels_in_half_precision_are_those_of_the_config(tmp_path, dtype):
    torch = need_torch()
    state = torch.load(TORCH / "ncsnpp_ve.pth", weights_only=False)
    half = {name: value.to(getattr(torch, dtype)) for name, value in state["model"].items()}
    torch.save(half, tmp_path / "half.pth")
    convert.load_checkpoint(tmp_path / "half.pth", torch_config())
    with pytest.raises(PdsError, match="the config says 49 to 0.01"):
        convert.load_checkpoint(tmp_path / "half.pth", read_config(TORCH / "ncsnpp_ve.config.json", sigma_max=49))


def test_another_number_of_noise_levels_is_noted():
    config = read_config(TORCH / "ncsnpp_ve.config.json", num_scales=100)
    _, report = convert.load_checkpoint(TORCH / "ncsnpp_ve.pth", config)
    assert any("1000 noise levels" in note for note in report.notes)


def test_export_loads_in_pytorch_and_comes_back_bit_equal(tmp_path):
    torch = need_torch()
    config, path = torch_config(), tmp_path / "ours.pth"
    params, _ = convert.load_checkpoint(TORCH / "ncsnpp_ve.pth", config)
    convert.export(params, config, path, "score_sde_torch")

    state = torch.load(path, weights_only=True)
    original = torch.load(TORCH / "ncsnpp_ve.pth", weights_only=False)
    assert list(state) == list(original) == ["optimizer", "model", "ema", "step"]
    assert list(state["model"]) == list(original["model"])
    for name, tensor in state["model"].items():
        assert (tensor.shape, tensor.dtype) == (original["model"][name].shape, original["model"][name].dtype)
    levels, recorded = (each["model"]["module.sigmas"] for each in (state, original))
    assert torch.allclose(levels, recorded, rtol=1e-15, atol=0)  # the last bit of exp is the processor's
    for ours, theirs in zip(state["ema"]["shadow_params"], original["ema"]["shadow_params"], strict=True):
        assert torch.equal(ours, theirs)
    optimizer = torch.optim.Adam([v.clone().float() for k, v in state["model"].items() if "sigmas" not in k])
    optimizer.load_state_dict(state["optimizer"])

    for use_ema in (True, False):
        assert_same_tree(params, convert.load_checkpoint(path, config, use_ema=use_ema)[0])


CONFIGS = {
    "combined by cat": {"progressive_input": "input_skip", "progressive": "output_skip", "progressive_combine": "cat"},
    "residual pyramids": {"progressive_input": "residual", "progressive": "residual"},
    "DDPM blocks and pyramids": {"resblock_type": "ddpm", "progressive_input": "input_skip", "progressive": "residual"},
    "no FIR": {"fir": False, "resblock_type": "ddpm", "resamp_with_conv": False},
    "unconditional": {"conditional": False},
    "NCSNv2 128": {"name": "ncsnv2_128", "nonlinearity": "elu", "normalization": "InstanceNorm++"},
    "NCSNv2 256": {"name": "ncsnv2_256", "nonlinearity": "elu", "normalization": "InstanceNorm++"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_goes_there_and_back_bit_equal(tmp_path, name):
    need_torch()
    interpolation = {"interpolation": "bilinear"} if name.startswith("NCSN") else {}
    config = read_config(TORCH / "ncsnpp_ve.config.json", num_scales=10, **CONFIGS[name], **interpolation)
    params, path = random_params(config), tmp_path / "model.pth"
    convert.export(params, config, path, "score_sde_torch")
    back, report = convert.load_checkpoint(path, config)
    assert_same_tree(params, back)
    assert (len(report.notes) == 2) == name.startswith("NCSN")


def test_names_of_ncsnv2_are_those_of_its_pytorch_modules():
    config = read_config(
        TORCH / "ncsnpp_ve.config.json", **CONFIGS["NCSNv2 256"], interpolation="bilinear", num_scales=10
    )
    names = {pair.target: pair.source for pair in torch_pairs(config, template(config))}
    assert names["Conv_0/kernel"] == "begin_conv.weight"
    assert names["InstanceNorm2dPlus_0/alpha"] == "normalizer.alpha"
    assert names["ResidualBlock_2/ConvMeanPool_0/Conv_0/kernel"] == "res2.0.conv2.conv.weight"
    assert names["ResidualBlock_2/ConvMeanPool_1/Conv_0/bias"] == "res2.0.shortcut.conv.bias"
    assert names["ResidualBlock_6/InstanceNorm2dPlus_1/gamma"] == "res31.0.normalize2.gamma"
    assert names["ResidualBlock_8/Conv_2/kernel"] == "res4.0.shortcut.weight"
    assert names["RefineBlock_2/RCUBlock_1/Conv_2/kernel"] == "refine31.adapt_convs.1.2_1_conv.weight"
    assert names["RefineBlock_5/RCUBlock_2/Conv_5/kernel"] == "refine5.output_convs.3_2_conv.weight"
    assert names["RefineBlock_3/MSFBlock_0/Conv_1/bias"] == "refine3.msf.convs.1.bias"
    assert names["RefineBlock_0/CRPBlock_0/Conv_1/kernel"] == "refine1.crp.convs.1.weight"


@pytest.mark.parametrize("name", ["ncsnv2_64", "ncsn"])
def test_networks_of_another_width_there_are_refused_both_ways(tmp_path, name):
    """score_sde_pytorch's third refine block is half as wide as score_sde's."""
    options = {"nonlinearity": "elu", "normalization": "InstanceNorm++", "interpolation": "bilinear", "num_classes": 10}
    config = read_config(TORCH / "ncsnpp_ve.config.json", name=name, num_scales=10, **options)
    with pytest.raises(convert.ConversionError, match="cannot be exchanged"):
        convert.load_checkpoint(TORCH / "ncsnpp_ve.pth", config)
    need_torch()
    with pytest.raises(convert.ConversionError, match="cannot be exchanged"):
        convert.export(random_params(config), config, tmp_path / "x.pth", "score_sde_torch")


def save(tmp_path, state, **options):
    torch = need_torch()
    path = tmp_path / "model.pth"
    torch.save(state, path, **options)
    return path


@pytest.fixture
def state():
    return need_torch().load(TORCH / "ncsnpp_ve.pth", weights_only=False)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_forms_of_torch_save_load(tmp_path, state, legacy, protocol):
    path = save(tmp_path, state, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    params, _ = convert.load_checkpoint(path, torch_config())
    assert_same_tree(params, convert.load_checkpoint(TORCH / "ncsnpp_ve.pth", torch_config())[0])


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes_become_float32(tmp_path, state, dtype):
    torch = need_torch()
    state["ema"]["shadow_params"] = [value.to(getattr(torch, dtype)) for value in state["ema"]["shadow_params"]]
    params, _ = convert.load_checkpoint(save(tmp_path, state), torch_config())
    expected = state["ema"]["shadow_params"][0].float().numpy().T
    np.testing.assert_array_equal(flatten(params)["Dense_0/kernel"], expected)


def test_strided_and_shared_storages_load(tmp_path, state):
    torch = need_torch()
    values = state["ema"]["shadow_params"]
    pool = torch.cat([value.flatten() for value in values])
    starts = np.cumsum([0] + [value.numel() for value in values])
    views = [pool[a:].as_strided(v.shape, v.stride(), int(a)) for a, v in zip(starts, values, strict=False)]
    views[0] = values[0].t().contiguous().t()
    state["ema"]["shadow_params"] = views
    params, _ = convert.load_checkpoint(save(tmp_path, state), torch_config())
    assert_same_tree(params, convert.load_checkpoint(TORCH / "ncsnpp_ve.pth", torch_config())[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s["ema"]["shadow_params"].pop(), "155 tensors, the model 156"),
        (
            lambda s: s["ema"]["shadow_params"].__setitem__(3, 1.0),
            "'ema/shadow_params' holds other things than tensors",
        ),
        (lambda s: s.pop("model"), "'all_modules.0.W'.*is missing"),
        (lambda s: s["model"].pop("module.all_modules.9.Conv_0.bias"), "tensors, the model|missing"),
        (
            lambda s: s["model"].__setitem__("module.all_modules.9.Conv_0.bias", "x"),
            "'all_modules.9.Conv_0.bias' is missing in 'model'",
        ),
        (lambda s: s["ema"]["shadow_params"].reverse(), "has shape"),
    ],
)
def test_damaged_states_are_refused(tmp_path, state, damage, message):
    damage(state)
    with pytest.raises(convert.ConversionError, match=message):
        convert.load_checkpoint(save(tmp_path, state), torch_config())


def test_a_file_without_moving_average_gives_its_raw_weights(tmp_path, state):
    del state["ema"]
    params, _ = convert.load_checkpoint(save(tmp_path, state), torch_config(), use_ema=False)
    assert_same_tree(params, convert.load_checkpoint(TORCH / "ncsnpp_ve.pth", torch_config(), use_ema=False)[0])


def test_parameters_of_another_network_are_not_exported(tmp_path):
    need_torch()
    params = random_params(torch_config())
    del params["Conv_0"]["bias"]
    with pytest.raises(convert.ConversionError, match="'Conv_0/bias'.*missing"):
        convert.export(params, torch_config(), tmp_path / "x.pth", "score_sde_torch")
    assert not list(tmp_path.iterdir())
