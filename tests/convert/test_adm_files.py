"""guided-diffusion's checkpoints: recorded outputs, the classifier's gradient, writing, and bad files."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert_cases import assert_same_tree, need_torch, random_params, relative
from edm_cases import ADM, CLASSIFIER, UNETS, adm_config, arrays, changed, network, once, state_dict
from mutations import mutations

from pds_jax import convert, denoisers, loading
from pds_jax.controllable_generation import class_conditional
from pds_jax.convert import adm
from pds_jax.convert.tree import flatten, template
from pds_jax.guidance import one_hot
from pds_jax.models import create_model
from pds_jax.sde_lib import VESDE
from pds_jax.types import PdsError

SIZES = {"image_size": 16, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1}
SETTINGS = {**SIZES, "attention_resolutions": [2]}


@pytest.mark.parametrize("name", UNETS)
def test_network_is_the_recorded_one(name):
    config, model, params = network(name)
    z = arrays(ADM, name)
    labels = one_hot(np.tile(z["y"], 2), config.model.label_dim) if config.model.label_dim else None
    x = np.concatenate([z["x"], z["x"]])
    t = np.concatenate([z["t"], z["t_fractional"]]).astype(np.float32)
    found = np.asarray(once(lambda p, x, t: model.apply({"params": p}, x, t, False, labels))(params, x, t))
    assert relative(found, np.concatenate([z["out"], z["out_t_fractional"]])) < 1e-5


def test_classifier_and_its_gradient_are_the_recorded_ones():
    _, model, params = network(CLASSIFIER)
    z = arrays(ADM, CLASSIFIER)
    t = z["t"].astype(np.float32)

    def log_p(x):
        logits = model.apply({"params": params}, x, t, False)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), z["y"][:, None], axis=1).sum(), logits

    gradient, logits = once(jax.grad(log_p, has_aux=True))(z["x"])
    assert relative(np.asarray(logits), z["logits"]) < 1e-5
    assert relative(np.asarray(gradient), z["grad_log_prob"]) < 1e-5


@pytest.fixture(scope="module")
def guided():
    """A recorded DDIM run with a classifier's guidance of weight 1.5, its first and third call."""
    with np.load(ADM / "ddim5_guided.npz") as z:
        return {key: z[key].transpose(0, 1, 3, 4, 2) if z[key].ndim == 5 else z[key] for key in z.files}


def test_noise_schedules_are_the_recorded_ones(guided):
    from pds_jax.adapters import ddpm_betas

    for name in ("linear", "cosine"):
        np.testing.assert_allclose(np.cumprod(1 - ddpm_betas(name)), guided[f"{name}1000"], rtol=1e-9)


def test_scores_are_those_of_the_recorded_guided_run(guided):
    """ε and the classifier's gradient at recorded states x_k = √ᾱ x̄, asked as scores of the VE SDE at x̄."""
    calls = [0, 2, 3]
    k = guided["call_t"][calls, 0].astype(int)
    x = np.concatenate([guided["noise"][0:1], guided["x"][:-1]])[calls]
    alpha_bar = guided["linear1000"][k]
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    np.testing.assert_allclose(guided["cond_x"][calls], x, atol=1e-6)
    sde = VESDE(0.005, 200, 100)

    config, model, params = network(UNETS[0])
    score = denoisers.get_score(config, sde, model, params)
    classifier_config, classifier, classifier_params = network(CLASSIFIER)
    logits = denoisers.get_logits(classifier_config, classifier, classifier_params)
    y = np.tile(guided["y"], len(calls))
    labelled = score.with_labels(one_hot(y, 10))
    guide = class_conditional(labelled, sde, logits, y, num_classes=10, scale=1.5)
    scale = np.repeat(alpha, 2)[:, None, None, None].astype(np.float32)
    x_bar = x.reshape(-1, *x.shape[2:]) / scale
    t = np.repeat(sde.t_of_level(sigma / alpha), 2).astype(np.float32)
    plain, both = once(lambda a, b, x, t: (a(x, t), b(x, t)))(labelled, guide, x_bar, t)
    level = np.repeat(sigma / alpha, 2)[:, None, None, None]

    epsilon = guided["model_out"][calls].reshape(-1, *guided["model_out"].shape[2:])[..., :3]
    assert relative(-np.asarray(plain) * level, epsilon) < 2e-4  # the time is looked up by its noise level, in float32
    gradient = guided["cond_grad"][calls].reshape(x_bar.shape)  # with the weight, of log p(y | x_k) to x_k
    assert relative((np.asarray(both) - np.asarray(plain)) / scale, gradient) < 1e-3


@pytest.mark.parametrize("name", [*UNETS, CLASSIFIER])
def test_weights_go_out_and_come_back(tmp_path, name):
    torch = need_torch()
    config, _, params = network(name)
    convert.export(params, config, tmp_path / "model.pt", "guided_diffusion")
    found, report = convert.load_checkpoint(tmp_path / "model.pt", config)
    assert_same_tree(found, params)
    assert report.kind == "guided_diffusion" and "attention order" in report.notes[0]
    original = torch.load(state_dict_plain(tmp_path, name), weights_only=True)
    written = torch.load(tmp_path / "model.pt", weights_only=True)
    assert set(written) == set(original)
    for key, value in original.items():
        assert torch.equal(written[key], value), key


def state_dict_plain(folder, name):
    (folder / "plain.pt").write_bytes(gzip.decompress(state_dict(name).read_bytes()))
    return folder / "plain.pt"


@pytest.mark.parametrize("parametrisation", ["score_sde", "denoiser", "edm", "wiener"])
def test_a_network_that_does_not_predict_the_noise_is_not_exported(parametrisation):
    config = adm.config_from_settings(SETTINGS)
    convert.check_export(config, "guided_diffusion")
    config.model.parametrisation = parametrisation
    with pytest.raises(convert.ConversionError, match=f"predict the noise.*'{parametrisation}'.*use kind"):
        convert.check_export(config, "guided_diffusion")
    classifier = adm.config_from_settings({**SETTINGS, "num_classes": None}, classifier=True)
    classifier.model.parametrisation = parametrisation
    convert.check_export(classifier, "guided_diffusion")
    config.model.name = "ncsnpp"
    with pytest.raises(convert.ConversionError, match="no network model.name='ncsnpp'"):
        convert.check_export(config, "guided_diffusion")


# Options without a recorded network: the importer's names fit the network, leaf by leaf.
@pytest.mark.parametrize("changes", [
    {"use_scale_shift_norm": True, "resblock_updown": True, "num_head_channels": 64, "channel_mult": [0.5, 1, 2]},
    {"conv_resample": False, "num_heads": 2, "num_heads_upsample": 1},
    {"num_classes": 7, "channel_mult": [1, 1, 2], "attention_resolutions": [4, 1]},
    {"classifier": True, "pool": "adaptive"},
    {"classifier": True, "pool": "spatial", "resblock_updown": True},
])  # fmt: skip
def test_networks_of_other_options_go_out_and_come_back(tmp_path, changes):
    need_torch()
    changes = {"model_channels": 64, **changes}
    classifier = changes.pop("classifier", False)
    config = adm.config_from_settings({**SETTINGS, **changes}, classifier=classifier)
    params = random_params(config)
    convert.export(params, config, tmp_path / "model.pt", "guided_diffusion")
    assert_same_tree(convert.load_checkpoint(tmp_path / "model.pt", config)[0], params)


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_dim": 0}, "is class-conditional, the configuration describes unconditional"),
        ({"name": "adm_classifier", "pool": "attention"}, "is a U-Net, the configuration describes a classifier"),
        ({"out_channels": 3}, "'out.2.weight' has shape"),
        ({"num_res_blocks": 2}, "missing"),
        ({"attention_order": "interleaved"}, "DhariwalUNet"),
        ({"resblock_updown": False}, "missing|left over"),
    ],
)
def test_another_network_is_named(changes, message):
    config = changed(adm_config(UNETS[0]), **changes)
    with pytest.raises(PdsError, match=message):
        convert.load_checkpoint(state_dict(UNETS[0]), config)


def test_a_pooling_that_is_not_read_is_named():
    settings = {**SETTINGS, "pool": "spatial_v2"}
    with pytest.raises(PdsError, match="pool is 'spatial_v2', not one of attention, adaptive, spatial"):
        adm.config_from_settings(settings, classifier=True)


def test_attention_order_decides_the_result():
    """The same file in the wrong order loads, and computes something else: nothing in it could tell."""
    config, model, params = network(UNETS[0])
    other = create_model(changed(config, attention_order="legacy"))
    z = arrays(ADM, UNETS[0])
    run = lambda m: np.asarray(once(lambda p, x, t: m.apply({"params": p}, x, t, False))(params, z["x"], z["t"]))  # noqa: E731
    assert relative(run(other), run(model)) > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": 1}, "dims"),
        ({"out_channels": 4}, "out_channels is 4, not 3, or 6 with learn_sigma"),
        ({"heads": 4}, "unknown argument 'heads'; known: "),
        ({"attention_resolutions": "16,8"}, "attention_resolutions"),
        ({"num_classes": 0}, "num_classes"),
        ({"use_new_attention_order": 1}, "True or False"),
        ({"channel_mult": [0]}, "channel_mult"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(PdsError, match=message):
        adm.config_from_settings({**SETTINGS, **changes})
    with pytest.raises(PdsError, match="noise_schedule"):
        adm.config_from_settings(SETTINGS, noise_schedule="sigmoid")


TINY = {**SETTINGS, "model_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 2], "attention_resolutions": [2]}


@pytest.mark.parametrize("rescaled, last", [(True, 999.75), (False, 3999.0)])
def test_times_of_the_network_are_those_of_its_training(tmp_path, rescaled, last):
    need_torch()
    config = adm.config_from_settings(TINY, noise_schedule="cosine", steps=4000, rescale_timesteps=rescaled)
    convert.export(random_params(config), config, tmp_path / "m.pt", "guided_diffusion")
    trained = loading.load(str(tmp_path / "m.pt"), config)
    assert float(trained.score_fn.schedule.times.max()) == pytest.approx(last)
    assert any("rescale_timesteps=True" in note for note in trained.notes) != rescaled
    assert trained.identity["model"].get("rescale_timesteps", False) == rescaled
    logits = denoisers.get_logits(config, None, None)
    assert float(logits.schedule.times.max()) == pytest.approx(last)


@pytest.mark.parametrize("words", [{"steps": 1}, {"steps": 2.5}, {"rescale_timesteps": "yes"}])
def test_bad_facts_of_the_diffusion_are_named(words):
    with pytest.raises(PdsError, match=next(iter(words))):
        adm.config_from_settings(SETTINGS, **words)


def test_float16_weights_are_read_and_noted(tmp_path):
    torch = need_torch()
    config, _, _ = network(UNETS[1])
    state = torch.load(state_dict_plain(tmp_path, UNETS[1]), weights_only=True)
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pt")
    _, report = convert.load_checkpoint(tmp_path / "half.pt", config)
    assert any("float16" in note for note in report.notes)


@pytest.mark.parametrize("name", [*UNETS, CLASSIFIER])
def test_state_dicts_are_known_by_content(tmp_path, name):
    state_dict_plain(tmp_path, name).rename(tmp_path / "checkpoint_1")
    assert convert.sniff(tmp_path / "checkpoint_1") == convert.sniff(state_dict(name)) == "guided_diffusion"


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_state_dicts_are_errors(tmp_path, count, packed):
    """As in test_fuzz; both containers have checksums, so nothing may change silently."""
    source = state_dict(UNETS[0]) if packed else state_dict_plain(tmp_path, UNETS[0])
    data, path = source.read_bytes(), tmp_path / "x.pt"
    config, _, params = network(UNETS[0])
    shapes, reference = template(config), flatten(params)
    errors = 0
    for what, damaged, _ in mutations(data, count, seed=3):
        path.write_bytes(damaged)
        try:
            found = flatten(convert.load_checkpoint(path, config)[0])
        except PdsError:
            errors += 1
            continue
        assert list(found) == list(shapes), what
        assert all(np.array_equal(found[key], reference[key]) for key in reference), what
    assert errors > count / 3
