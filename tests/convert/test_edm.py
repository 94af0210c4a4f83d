"""EDM's snapshots: recorded outputs of every wrapper, the configuration in the file, writing, and bad files."""

import gzip
import pickle
import shutil

import ml_collections
import numpy as np
import pytest
from convert_cases import assert_same_tree, relative
from edm_cases import EDM, SNAPSHOTS, arrays, changed, denoiser, once, snapshot
from mutations import mutations

from pds_jax import convert
from pds_jax.convert import edm
from pds_jax.convert.tree import flatten
from pds_jax.types import PdsError


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_denoiser_is_the_recorded_one(name):
    """One batch of all that was recorded: one-hot, soft and no labels, with and without augmentation labels."""
    config, d = denoiser(name)
    z = arrays(EDM, name)
    kinds = [kind for kind in ("D", "D_soft", "D_nolabel", "D_augment") if kind in z]
    one_hot = z["class_labels"] if config.model.label_dim else np.zeros((6, 0), np.float32)
    rows = {"D_soft": z.get("soft_labels"), "D_nolabel": np.zeros_like(one_hot)}
    labels = np.concatenate([rows.get(kind, one_hot) for kind in kinds])
    augment = None
    if config.model.augment_dim:
        augment = np.concatenate([(kind == "D_augment") * z["augment_labels"] for kind in kinds])
    x, sigma = np.concatenate([z["x"]] * len(kinds)), np.concatenate([z["sigma"]] * len(kinds))
    d = d.with_labels(labels if config.model.label_dim else None)
    found = np.asarray(once(lambda d, x, s, a: d(x, s, a))(d, x, sigma, augment))
    for kind, images in zip(kinds, np.split(found, len(kinds)), strict=True):
        assert relative(images, z[kind]) < 1e-5, kind


@pytest.mark.parametrize("name", ["ve_ncsnpp_uncond", "edm_adm_cond"])
def test_network_is_the_recorded_one(name):
    _, d = denoiser(name)
    z = arrays(EDM, name)
    found = once(lambda d, x, noise: d.network(x, noise))(
        d.with_labels(z.get("class_labels")), z["F_in"], z["c_noise"].reshape(-1)
    )
    # Float32 itself: the recorded program is 1.3e-5 from float64 at VE's Fourier features.
    assert relative(np.asarray(found), z["F"]) < (2e-5 if name.startswith("ve") else 1e-5)


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_scalings_are_the_recorded_ones(name):
    _, d = denoiser(name)
    z = arrays(EDM, name)
    _, _, c_in, noise = d.scalings(z["sigma"].astype(np.float32))
    np.testing.assert_allclose(c_in[:, None, None, None] * z["x"], z["F_in"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(noise, z["c_noise"].reshape(-1), rtol=1e-6, atol=2e-4)
    rounded = d.round_sigma(z["round_in"].astype(np.float32))
    np.testing.assert_allclose(rounded, z["round_out"], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "sde", "fields"),
    [
        ("edm_adm_cond", "vesde", {"name": "adm", "label_dim": 5, "ch_mult": (1, 2), "attn_resolutions": (8,)}),
        ("edm_ddpmpp_cond", "vesde", {"name": "songunet", "label_dim": 4, "augment_dim": 9, "sigma_max": 80.0}),
        ("ve_ncsnpp_uncond", "vesde", {"fir_kernel": (1, 3, 3, 1), "sigma_min": 0.02, "sigma_max": 100.0}),
        ("vp_ddpmpp_cond", "vpsde", {"num_res_blocks": 2, "beta_min": 0.1, "beta_max": 20.0, "levels": 1000}),
        ("iddpm_adm_cond_2heads", "vesde", {"out_channels": 6, "preconditioning": "iddpm"}),
    ],
)
def test_the_configuration_is_in_the_file(name, sde, fields):
    config = convert.config_of(snapshot(name))
    assert config.training.sde == sde and config.data.centered
    for field, value in fields.items():
        assert config.model[field] == value, field


def test_every_leaf_is_accounted_for():
    config = convert.config_of(snapshot("edm_ncsnpp_uncond"))
    _, report = convert.load_checkpoint(snapshot("edm_ncsnpp_uncond"), config)
    assert report.kind == "edm" and report.weights == "ema"
    assert "5 buffers" in report.unused[0]  # 6 with the Fourier frequencies, which are a parameter here


@pytest.mark.parametrize("name", ["edm_ncsnpp_uncond", "edm_adm_cond"])
def test_a_snapshot_is_rewritten_and_read_back(tmp_path, name):
    config, _ = denoiser(name)
    params, _ = convert.load_checkpoint(snapshot(name), config)
    edm.rewrite(params, config, snapshot(name), tmp_path / "same.pkl")
    data = snapshot(name).read_bytes()
    assert (tmp_path / "same.pkl").read_bytes() == (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    other = {path: -2 * value for path, value in flatten(params).items()}
    other = convert.tree.nest(other)
    edm.rewrite(other, config, tmp_path / "same.pkl", tmp_path / "other.pkl")
    found, _ = convert.load_checkpoint(tmp_path / "other.pkl", config)
    assert_same_tree(found, other)


def test_rewriting_another_network_is_refused(tmp_path):
    config, d = denoiser("edm_ncsnpp_uncond")
    with pytest.raises(PdsError, match="of the file is"):
        edm.rewrite(d.params, config, snapshot("ve_ncsnpp_uncond"), tmp_path / "x.pkl")


def test_our_own_folder_keeps_the_configuration(tmp_path):
    config, d = denoiser("vp_ddpmpp_cond")
    convert.export(d.params, config, tmp_path / "model")
    back = convert.config_of(tmp_path / "model")
    params, _ = convert.load_checkpoint(tmp_path / "model", back)
    assert_same_tree(params, d.params)


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("model", "nf", 32), ("model", "preconditioning", "ve"), ("model", "sigma_data", 1.0), ("data", "image_size", 16)],
)
def test_a_configuration_of_another_network_is_refused_by_field(section, field, value):
    config = ml_collections.ConfigDict(convert.config_of(snapshot("edm_ncsnpp_uncond")).to_dict())
    config[section][field] = value
    with pytest.raises(PdsError, match=f"{section}.{field}"):
        convert.load_checkpoint(snapshot("edm_ncsnpp_uncond"), config)


def test_a_configuration_may_choose_the_range_of_noise():
    config = changed(convert.config_of(snapshot("edm_ncsnpp_uncond")), sigma_max=20.0, dropout=0.0, dtype="bfloat16")
    convert.load_checkpoint(snapshot("edm_ncsnpp_uncond"), config)


def replaced(tmp_path, old, new):
    """A snapshot in which one text of the pickle is replaced by another of the same length."""
    data = snapshot("edm_ncsnpp_uncond").read_bytes()
    assert old in data and len(old) == len(new)
    (tmp_path / "x.pkl").write_bytes(data.replace(old, new))
    return tmp_path / "x.pkl"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"EDMPrecond\x94", b"PrecondEDM\x94", "class 'PrecondEDM'; known: EDMPrecond.*not those of EDM2"),
        (b"SongUNet\x94", b"MongUNet\x94", "class 'MongUNet'; known: SongUNet, DhariwalUNet"),
        (b"_load_from_bytes", b"_load_from_butes", "not on the list of names"),
        (b"\x8c\x03ema\x94", b"\x8c\x03net\x94", "no network 'ema'"),
        (b"embedding_type", b"embedding_tape", "'embedding_tape', which is not known"),
        (b"\x8c\x07fourier", b"\x8c\x07courier", "embedding_type is 'courier', not one of positional, fourier"),
    ],
)
def test_other_classes_and_arguments_are_named(tmp_path, old, new, message):
    path = replaced(tmp_path, old, new)
    with pytest.raises(PdsError, match=message):
        convert.load_checkpoint(path, convert.config_of(path))


class Evil:
    def __reduce__(self):
        return print, ("must not run",)


def test_nothing_in_a_pickle_runs(tmp_path, capsys):
    marker = b"torch_utils.persistence _reconstruct_persistent_obj"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"note": marker, "ema": Evil()}, protocol=4))
    with pytest.raises(PdsError, match="builtins.print"):
        convert.config_of(tmp_path / "x.pkl")
    assert "must not run" not in capsys.readouterr().out


def test_raw_weights_are_refused_for_there_are_none():
    config = convert.config_of(snapshot("edm_ncsnpp_uncond"))
    with pytest.raises(PdsError, match="moving average of the weights alone"):
        convert.load_checkpoint(snapshot("edm_ncsnpp_uncond"), config, use_ema=False)


def test_a_training_state_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"net": "torch_utils.persistence _reconstruct_persistent_obj", "optimizer_state": torch.zeros(3)}
    torch.save(state, tmp_path / "training-state-000.pt")
    with pytest.raises(PdsError, match="training state of EDM"):
        convert.sniff(tmp_path / "training-state-000.pt")


def test_a_network_inside_itself_is_refused():
    from pds_jax.convert.persistent import module_tensors
    from pds_jax.convert.pickles import PickledObject

    module = PickledObject("Linear", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    module.state["_modules"]["again"] = module
    with pytest.raises(PdsError, match="twice"):
        list(module_tensors(module))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_resolution": 8, "in_channels": 3}, "out_channels is missing"),
        ({"img_resolution": 8, "in_channels": 3, "out_channels": 4}, "do not belong"),
        ({"channel_mult": "12"}, "channel_mult"),
        ({"channel_mult": []}, "channel_mult"),
        ({"dropout": float("nan")}, "dropout"),
        ({"dropout": 1}, "dropout"),
        ({"label_dim": True}, "label_dim"),
        ({"resample_filter": [1, 2, 1]}, "resample_filter"),
        ({"sigma_data": 0}, "sigma_data"),
        ({"model_channels": 10**9}, "model_channels"),
        ({"encoder_type": "other"}, "encoder_type"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    full = {} if "img_resolution" in arguments else {"img_resolution": 8, "in_channels": 3, "out_channels": 3}
    with pytest.raises(PdsError, match=message):
        edm.config_from_arguments("EDMPrecond", "SongUNet", {**full, **arguments})


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_snapshots_are_errors(tmp_path, count, packed):
    """As in test_fuzz: an error, or the same tree up to the numbers that were touched."""
    name = "vp_ddpmpp_cond" if packed else "edm_ncsnpp_uncond"
    data, path = snapshot(name).read_bytes(), tmp_path / "x.pkl"
    config = convert.config_of(snapshot(name))
    reference = flatten(convert.load_checkpoint(snapshot(name), config)[0])
    errors = 0
    for what, damaged, touched in mutations(data, count, seed=7):
        path.write_bytes(damaged)
        try:
            convert.config_of(path)
            found = flatten(convert.load_checkpoint(path, config)[0])
        except PdsError:
            errors += 1
            continue
        assert list(found) == list(reference), what
        assert all(np.isfinite(value).all() for value in found.values()), what
        different = sum(int((value != reference[key]).sum()) for key, value in found.items())
        assert different <= (0 if packed else touched), f"{what} changed {different} numbers silently"
    assert errors > count / 3


def test_snapshots_are_known_by_content(tmp_path):
    for name in SNAPSHOTS:
        shutil.copy(snapshot(name), tmp_path / "model.pth")
        assert convert.sniff(tmp_path / "model.pth") == "edm"
