import numpy as np
import pytest
from latent_cases import libraries, randomise, write_tokenizer

from pds_jax.latent.clip_score import load_clip_score
from pds_jax.types import PdsError


def save_clip(folder):
    torch, _, transformers = libraries()
    count = write_tokenizer(folder)
    shared = dict(hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=3, projection_dim=7)
    text = dict(shared, vocab_size=count, max_position_embeddings=12, bos_token_id=count - 2, eos_token_id=count - 1)
    vision = dict(shared, image_size=16, patch_size=8, hidden_act="gelu")
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=7)
    model = randomise(torch, transformers.CLIPModel(config), scale=0.4)
    model.save_pretrained(folder)
    return model


def test_scores_equal_transformers(tmp_path):
    torch, _, _ = libraries()
    model = save_clip(tmp_path)
    score = load_clip_score(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), np.uint8)
    captions = ["a red cat", "the hats", "red " * 30]
    pixels = np.stack([score.pixels(image) for image in images])
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(score.tokenizer(captions).ids.astype(np.int64)),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2)),
        )
    cosines = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
    np.testing.assert_allclose(score(images, captions), 100 * np.maximum(cosines.numpy(), 0), rtol=1e-4, atol=1e-3)


def test_pixels_equal_the_image_processor(tmp_path):
    _, _, transformers = libraries()
    save_clip(tmp_path)
    name = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
    processor = getattr(transformers, name)(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path)
    score = load_clip_score(tmp_path)
    image = np.random.default_rng(1).integers(0, 256, (30, 45, 3), np.uint8)
    expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(score.pixels(image), expected, atol=1e-5)


def test_other_models_and_unequal_numbers_are_refused(tmp_path):
    model = save_clip(tmp_path)
    with pytest.raises(PdsError, match="each image needs its own"):
        load_clip_score(tmp_path)([np.zeros((16, 16, 3), np.uint8)], [])
    model.config.text_config.save_pretrained(tmp_path)
    with pytest.raises(PdsError, match="no CLIPModel with both encoders"):
        load_clip_score(tmp_path)
