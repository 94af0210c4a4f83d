import numpy as np
from latent_cases import TEXTS, relative

from pds_jax.latent import text as text_lib
from pds_jax.latent.folder import load_pipeline


def theirs(pipe, prompts):
    import torch

    with torch.no_grad():
        return np.stack([pipe.encode_prompt(prompt, "cpu", 1, False)[0][0].numpy() for prompt in prompts])


def test_states_equal_the_pipelines_and_long_prompts_are_told(pipelines):
    path, pipe = pipelines("sd1")
    found = load_pipeline(path).text.encode(TEXTS)
    assert found.states.dtype == np.float32
    assert relative(found.states, theirs(pipe, TEXTS)) < 1e-5
    assert len(found.notes) == 3 and "longer than 10 tokens; left out: 'red red" in found.notes[-1]


def test_states_are_kept_and_a_damaged_file_is_made_again(pipelines, tmp_path, monkeypatch):
    encoder = load_pipeline(pipelines("sd1")[0]).text
    first = encoder.encode(["a cat", "the cat"], tmp_path).states
    kept = sorted(tmp_path.rglob("*.npy"))
    assert len(kept) == 2
    runs = []
    apply = text_lib._apply
    monkeypatch.setattr(text_lib, "_apply", lambda *words: runs.append(1) or apply(*words))
    np.testing.assert_array_equal(encoder.encode(["a cat", "the cat"], tmp_path).states, first)
    assert not runs
    kept[0].write_bytes(b"damaged")
    np.testing.assert_allclose(encoder.encode(["a cat", "the cat"], tmp_path).states, first, rtol=1e-5, atol=1e-6)
    assert runs == [1]
