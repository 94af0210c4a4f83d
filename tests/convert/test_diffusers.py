import json
import shutil

import numpy as np
import pytest
from convert_cases import (
    GOLDEN,
    PIPE,
    assert_same_tree,
    forward,
    need_diffusers,
    need_torch,
    random_params,
    relative,
    skip_config,
)

from pds_jax import convert
from pds_jax.convert import diffusers
from pds_jax.convert.names import diffusers_pairs, torch_pairs
from pds_jax.convert.parity import with_diffusers
from pds_jax.convert.tree import source_shape, template
from pds_jax.types import PdsError


@pytest.fixture
def pipe(tmp_path):
    """A copy of the recorded folder, to be changed."""
    return shutil.copytree(PIPE, tmp_path / "pipe")


def change(path, **fields):
    values = json.loads(path.read_text())
    for name, value in fields.items():
        if value is ...:
            values.pop(name)
        else:
            values[name] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("recorded", "model"),
    [
        ("key_map_equal.json", {}),
        ("key_map.json", {"nf": 32, "ch_mult": (1, 1, 1), "attn_resolutions": (8,)}),
    ],
)
def test_names_and_shapes_are_those_of_the_recorded_maps(recorded, model):
    config = skip_config(**model)
    shapes = template(config)
    torch_names = {pair.target: pair.source for pair in torch_pairs(config, shapes)}
    ours = {
        (pair.source, torch_names[pair.target], source_shape(shapes[pair.target], pair))
        for pair in diffusers_pairs(config, shapes)
    }
    rows = json.loads((GOLDEN / "torch" / "diffusers" / recorded).read_text())
    assert ours == {(row["diffusers_key"], row["ncsnpp_key"], tuple(row["shape"])) for row in rows}


def test_forward_equals_the_recorded_outputs():
    config = skip_config()
    io = np.load(GOLDEN / "torch" / "diffusers" / "unet_equal.io.npz")
    params, report = convert.load_checkpoint(PIPE, config)
    ours = forward(config, params, io["sample"], io["timestep"])
    assert relative(ours, io["out_diffusers"]) < 1e-5
    assert relative(ours, io["out_ncsnpp"]) < 1e-5
    assert len(report.mapped) == len(template(config)) and not report.notes


@pytest.mark.parametrize("part", ["unet", "unet/diffusion_pytorch_model.safetensors"])
def test_the_unet_alone_loads_too(part):
    assert_same_tree(
        convert.load_checkpoint(PIPE, skip_config())[0], convert.load_checkpoint(PIPE / part, skip_config())[0]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_out_channels": [8, 8, 16]}, "block_out_channels"),
        ({"layers_per_block": 2}, "layers_per_block is 2, but our config stands for 1"),
        ({"center_input_sample": False}, "center_input_sample"),
        ({"attention_head_dim": 8}, "attention_head_dim is 8"),
        ({"attention_head_dim": ...}, "attention_head_dim is 8"),
        ({"norm_eps": 1e-5}, "norm_eps"),
        ({"norm_num_groups": 4}, "norm_num_groups"),
        ({"sample_size": 32}, "sample_size"),
        ({"down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"]}, "down_block_types"),
        ({"time_embedding_type": "positional"}, "time_embedding_type"),
        ({"mid_block_scale_factor": 1}, "mid_block_scale_factor"),
        ({"mid_block_scale_factor": 10**400}, "mid_block_scale_factor"),
        ({"in_channels": True}, "in_channels"),
        ({"up_block_types": ...}, "up_block_types"),
        ({"block_out_channels": 8}, "not a list"),
    ],
)
def test_every_option_is_compared(pipe, fields, message):
    change(pipe / "unet" / "config.json", **fields)
    with pytest.raises(convert.ConversionError, match=message):
        convert.load_checkpoint(pipe, skip_config())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"progressive": "none"}, "model.progressive='output_skip'"),
        ({"progressive_combine": "cat"}, "model.progressive_combine='sum'"),
        ({"embedding_type": "positional"}, "model.embedding_type='fourier'"),
        ({"fir_kernel": (1, 2, 1)}, "model.fir_kernel"),
        ({"name": "ddpm"}, "model.name='ncsnpp'"),
    ],
)
def test_networks_that_diffusers_lacks_are_refused(tmp_path, model, message):
    config = skip_config(**model)
    with pytest.raises(convert.ConversionError, match=message):
        diffusers.expected_config(config)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"nf": 32, "attn_resolutions": (8,)}, "32 groups and NCSN\\+\\+ in 16"),
        ({"nf": 64, "ch_mult": (1, 1, 1), "attn_resolutions": (4,)}, "32 groups and NCSN\\+\\+ in 16"),
    ],
)
def test_narrow_attention_is_refused_because_diffusers_computes_otherwise(tmp_path, model, message):
    config = skip_config(**model)
    with pytest.raises(convert.ConversionError, match=message):
        convert.export(random_params(config), config, tmp_path / "pipe", "diffusers")
    assert not (tmp_path / "pipe").exists()


def test_wide_attention_is_accepted():
    diffusers.refuse_narrow_attention(
        skip_config(image_size=256, nf=128, ch_mult=(1, 1, 2, 2, 2, 2, 2), attn_resolutions=(16,))
    )


def test_a_missing_leaf_is_named(pipe):
    from safetensors.numpy import load_file, save_file

    path = pipe / "unet" / "diffusion_pytorch_model.safetensors"
    arrays = load_file(path)
    arrays["extra.weight"] = arrays.pop("down_blocks.0.skip_conv.weight")
    save_file(arrays, path)
    with pytest.raises(convert.ConversionError, match="'down_blocks.0.skip_conv.weight'.*'extra.weight'"):
        convert.load_checkpoint(pipe, skip_config())


def test_names_of_older_folders_load(pipe):
    from safetensors.numpy import load_file, save_file

    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    path = pipe / "unet" / "diffusion_pytorch_model.safetensors"
    arrays = load_file(path)
    for new, name in old.items():
        for leaf in ("weight", "bias"):
            arrays[f"mid_block.attentions.0.{name}.{leaf}"] = arrays.pop(f"mid_block.attentions.0.{new}.{leaf}")
    arrays["time_proj.W"] = arrays["time_proj.weight"].copy()
    save_file(arrays, path)
    params, report = convert.load_checkpoint(pipe, skip_config())
    assert_same_tree(params, convert.load_checkpoint(PIPE, skip_config())[0])
    assert any("time_proj.W" in line for line in report.unused)
    arrays["time_proj.W"][0] += 1
    save_file(arrays, path)
    with pytest.raises(convert.ConversionError, match="should be equal"):
        convert.load_checkpoint(pipe, skip_config())


def test_both_names_of_its_activation_are_known(pipe):
    change(pipe / "unet" / "config.json", act_fn="swish")
    params, _ = convert.load_checkpoint(pipe, skip_config())
    assert_same_tree(params, convert.load_checkpoint(PIPE, skip_config())[0])
    change(pipe / "unet" / "config.json", act_fn="gelu")
    with pytest.raises(convert.ConversionError, match="act_fn is 'gelu'"):
        convert.load_checkpoint(pipe, skip_config())


def test_another_schedule_is_noted(pipe):
    change(pipe / "scheduler" / "scheduler_config.json", sigma_max=1348)
    _, report = convert.load_checkpoint(pipe, skip_config())
    assert report.notes == ["the scheduler has sigma_max=1348, the config model.sigma_max=380"]


def test_there_and_back_is_bit_equal(tmp_path):
    config = skip_config()
    params = random_params(config)
    convert.export(params, config, tmp_path / "pipe", "diffusers")
    assert_same_tree(params, convert.load_checkpoint(tmp_path / "pipe", config)[0])


def test_a_folder_with_a_unet_that_would_be_read_first_is_refused(pipe, tmp_path):
    config = skip_config()
    (pipe / "unet").rename(pipe / "unet_ema")
    with pytest.raises(convert.ConversionError, match=r"unet_ema holds a UNet that is read before .*unet; move"):
        convert.export(random_params(config), config, pipe, "diffusers")
    with pytest.raises(convert.ConversionError, match="is read before"):
        convert.check_place(pipe / "unet_ema", "diffusers")
    assert not (pipe / "unet").exists()


def test_an_interrupted_overwrite_is_no_unet(pipe, monkeypatch):
    monkeypatch.setattr(diffusers.safetensors_io, "write_arrays", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert.export(random_params(skip_config()), skip_config(), pipe, "diffusers")
    assert diffusers.unet_folder(pipe) is None


@pytest.mark.slow
def test_diffusers_loads_what_we_write_and_we_load_what_it_writes(tmp_path):
    library, config = need_diffusers(), skip_config()
    params = random_params(config)
    convert.export(params, config, tmp_path / "pipe", "diffusers")
    pipeline = library.ScoreSdeVePipeline.from_pretrained(tmp_path / "pipe")
    assert pipeline.scheduler.config.sigma_max == config.model.sigma_max
    for safe in (True, False):
        pipeline.unet.save_pretrained(tmp_path / f"safe_{safe}", safe_serialization=safe)
        assert_same_tree(params, convert.load_checkpoint(tmp_path / f"safe_{safe}", config)[0])
    assert with_diffusers(tmp_path / "pipe", config, params) < 1e-4


@pytest.mark.slow
def test_live_networks_agree_at_a_realistic_width(tmp_path):
    """Attention at 128 and 256 channels, as in the published 256-pixel models; fewer pixels and levels."""
    need_diffusers()
    config = skip_config(nf=128, ch_mult=(1, 1, 2), num_res_blocks=2, attn_resolutions=(8, 4))
    params = random_params(config)
    convert.export(params, config, tmp_path / "pipe", "diffusers")
    assert with_diffusers(tmp_path / "pipe", config, params) < 1e-4


def test_a_folder_that_diffusers_cannot_load_is_an_error(pipe):
    need_diffusers()
    (pipe / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    with pytest.raises(convert.ConversionError, match="diffusers cannot load"):
        with_diffusers(pipe, skip_config(), {})


def test_a_bin_file_of_code_is_refused(pipe):
    torch = need_torch()
    (pipe / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": print}, pipe / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(convert.ConversionError, match="builtin.*not on the list"):
        convert.load_checkpoint(pipe, skip_config())


def test_missing_weights_are_an_error(pipe):
    (pipe / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(convert.ConversionError, match="holds neither.*it has: config.json"):
        convert.load_checkpoint(pipe, skip_config())


def weights_file(folder):
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def changed_weights(folder, change):
    """Rewrite the weights of a pipe's UNet; the frequencies, which never train, stay."""
    from safetensors.numpy import load_file, save_file

    arrays = load_file(weights_file(folder))
    save_file({k: v if k.startswith("time_proj") else change(v) for k, v in arrays.items()}, weights_file(folder))


@pytest.mark.parametrize("name", ["unet_ema", "ema_unet", "unet-ema"])
def test_the_average_beside_the_raw_unet_is_read(pipe, name):
    shutil.copytree(pipe / "unet", pipe / name)
    changed_weights(pipe, lambda v: v + 1)
    averaged = convert.load_checkpoint(PIPE, skip_config())[0]
    found, report = convert.load_checkpoint(pipe, skip_config())
    assert_same_tree(averaged, found)
    assert (report.weights, report.notes) == ("ema", [f"read the moving average '{name}', not the raw weights 'unet'"])
    for place, use_ema in ((pipe, False), (pipe / "unet", True)):
        raw, report = convert.load_checkpoint(place, skip_config(), use_ema=use_ema)
        np.testing.assert_array_equal(raw["Dense_0"]["bias"], averaged["Dense_0"]["bias"] + 1)
        assert report.weights == "raw"
    shutil.rmtree(pipe / "unet")
    assert_same_tree(averaged, convert.load_checkpoint(pipe, skip_config())[0])
    with pytest.raises(convert.ConversionError, match=f"the moving average '{name}' only"):
        convert.load_checkpoint(pipe, skip_config(), use_ema=False)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "my_variant"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_variant_is_read_with_a_line_that_says_so(pipe, variant, suffix):
    torch = need_torch()
    from safetensors.torch import load_file, save_file

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "my_variant": torch.float32}[variant]
    arrays = {name: value.to(dtype) for name, value in load_file(weights_file(pipe)).items()}
    path = pipe / "unet" / f"diffusion_pytorch_model.{variant}.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(arrays, path)
    weights_file(pipe).unlink()
    found, report = convert.load_checkpoint(pipe, skip_config())
    np.testing.assert_array_equal(found["Dense_0"]["bias"], arrays["time_embedding.linear_1.bias"].float().numpy())
    assert f"read the variant {variant!r}, {path.name}" in report.notes
    assert any("became float32" in note for note in report.notes) == (variant != "my_variant")


def test_a_variant_of_raw_weights_is_read_only_if_asked_for(pipe):
    averaged = convert.load_checkpoint(PIPE, skip_config())[0]
    average = weights_file(pipe).read_bytes()
    changed_weights(pipe, lambda v: v + 1)
    weights_file(pipe).rename(pipe / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    weights_file(pipe).write_bytes(average)
    assert_same_tree(averaged, convert.load_checkpoint(pipe, skip_config())[0])
    raw, report = convert.load_checkpoint(pipe, skip_config(), use_ema=False)
    np.testing.assert_array_equal(raw["Dense_0"]["bias"], averaged["Dense_0"]["bias"] + 1)
    assert report.weights == "raw"


def shard(pipe, variant=""):
    from safetensors.numpy import load_file, save_file

    arrays = load_file(weights_file(pipe))
    names = sorted(arrays)
    places = {f"diffusion_pytorch_model{variant}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in places.items():
        save_file({name: arrays[name] for name in part}, pipe / "unet" / file)
    weights_file(pipe).unlink()
    index = pipe / "unet" / f"diffusion_pytorch_model.safetensors.index{variant}.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in places.items() for name in part}}))
    return index


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read_together(pipe, variant):
    index = shard(pipe, variant)
    for place in (pipe, pipe / "unet", index):
        assert_same_tree(
            convert.load_checkpoint(PIPE, skip_config())[0], convert.load_checkpoint(place, skip_config())[0]
        )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda index: next(index.parent.glob("*-00002-of-00002*")).unlink(), "00002-of-00002.safetensors.*not there"),
        (lambda index: index.unlink(), "2 shards without their index"),
        (lambda index: index.write_text("{}"), "weight_map"),
        (lambda index: index.write_text('{"weight_map": {"a": "../x.safetensors"}}'), "not a plain file name"),
        (lambda index: index.write_text("["), "JSON"),
    ],
)
def test_damaged_shards_are_refused(pipe, damage, message):
    damage(shard(pipe))
    with pytest.raises(PdsError, match=message):
        convert.load_checkpoint(pipe, skip_config())
