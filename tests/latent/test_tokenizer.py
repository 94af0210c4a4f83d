import json

import numpy as np
import pytest
from latent_cases import TEXTS, libraries, write_tokenizer

from pds_jax.latent.tokenizer import load_tokenizer


def theirs(folder, texts):
    _, _, transformers = libraries()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    return np.asarray(tokenizer(texts, padding="max_length", max_length=12, truncation=True).input_ids)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("form", ["merges", "json"])
def test_tokens_equal_transformers(tmp_path, form, pad):
    write_tokenizer(tmp_path, pad)
    expected = theirs(tmp_path, TEXTS)
    if form == "json":
        libraries()[2].CLIPTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
        assert (tmp_path / "saved" / "tokenizer.json").is_file()
        tmp_path = tmp_path / "saved"
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.length == 12
    np.testing.assert_array_equal(tokenizer(TEXTS).ids, expected)


def test_what_does_not_fit_is_told(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    tokens = tokenizer(["red red", "1234567890 red cat"])
    assert tokens.cut == ("", "red cat")
    assert tokens.ids[1, -1] == tokenizer.end and (tokens.ids[0] == tokenizer.pad).sum() > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "merges.txt").unlink(), "neither tokenizer.json nor vocab.json and merges.txt"),
        (lambda folder: (folder / "vocab.json").write_text("{"), "JSON"),
        (lambda folder: (folder / "vocab.json").write_text('{"a": 1}'), "damaged"),
        (lambda folder: (folder / "merges.txt").write_text("a b c"), "not a pair"),
        (lambda folder: (folder / "merges.txt").write_text("q zz"), "damaged"),
        (lambda folder: change(folder / "tokenizer_config.json", tokenizer_class="T5Tokenizer"), "T5Tokenizer"),
        (lambda folder: change(folder / "special_tokens_map.json", pad_token="<pad>"), "lacks the pad_token '<pad>'"),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    write_tokenizer(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
