import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_cases import libraries, normal, randomise, relative

from pds_jax.convert.folder_weights import TRANSFORMERS_STEMS
from pds_jax.io import files
from pds_jax.latent import layouts, params
from pds_jax.latent.clip import ClipText, ClipVision

TEXT = dict(
    vocab_size=40, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
    max_position_embeddings=9, bos_token_id=38, eos_token_id=39, pad_token_id=39,
)  # fmt: skip
TOKENS = np.asarray([[38, 5, 6, 39, 39, 39, 39, 39, 39], [38, 1, 2, 3, 4, 5, 6, 7, 39]], np.int32)


def load_text(folder):
    fields = files.read_json(folder / "config.json")
    model = ClipText(layouts.text_sizes(fields, str(folder)))
    shapes = params.shapes_of(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    return model, params.load_params(folder, TRANSFORMERS_STEMS, shapes, prefix="text_model.")


@pytest.mark.parametrize(("act", "end"), [("quick_gelu", 39), pytest.param("gelu", 2, marks=pytest.mark.slow)])
def test_text_encoder_equals_transformers(tmp_path, act, end):
    torch, _, transformers = libraries()
    config = transformers.CLIPTextConfig(**{**TEXT, "hidden_act": act, "eos_token_id": end})
    theirs = randomise(torch, transformers.CLIPTextModel(config), scale=0.5)
    theirs.save_pretrained(tmp_path)
    model, (tree, _) = load_text(tmp_path)
    states, pooled = jax.jit(model.apply)({"params": tree}, TOKENS)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS.astype(np.int64)))
    assert relative(states, expected.last_hidden_state.numpy()) < 1e-5
    assert relative(pooled, expected.pooler_output.numpy()) < 1e-5


def test_files_of_older_versions_load(tmp_path):
    from safetensors.numpy import load_file, save_file

    torch, _, transformers = libraries()
    theirs = randomise(torch, transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)))
    theirs.save_pretrained(tmp_path)
    _, (new, _) = load_text(tmp_path)
    arrays = {f"text_model.{name}": value for name, value in load_file(tmp_path / "model.safetensors").items()}
    arrays["text_model.embeddings.position_ids"] = np.arange(9)[None]
    save_file(arrays, tmp_path / "model.safetensors")
    _, (old, report) = load_text(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, new, old)
    assert report.unused == ["text_model.embeddings.position_ids: the numbers from 0, a constant"]
    arrays["text_model.embeddings.position_ids"] = np.arange(9)[None] + 1
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(params.ConversionError, match="position_ids"):
        load_text(tmp_path)


@pytest.mark.slow
def test_image_encoder_equals_transformers(tmp_path):
    torch, _, transformers = libraries()
    config = transformers.CLIPVisionConfig(
        hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3, image_size=8, patch_size=4
    )
    theirs = randomise(torch, transformers.CLIPVisionModel(config), scale=0.5)
    theirs.save_pretrained(tmp_path)
    model = ClipVision(layouts.vision_sizes(files.read_json(tmp_path / "config.json"), str(tmp_path)))
    images = normal(0, 2, 8, 8, 3)
    shapes = params.shapes_of(lambda: model.init(jax.random.key(0), images))
    tree, _ = params.load_params(tmp_path, TRANSFORMERS_STEMS, shapes, prefix="vision_model.")
    ours = jax.jit(model.apply)({"params": tree}, images)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).pooler_output.numpy()
    assert relative(ours, expected) < 1e-5
