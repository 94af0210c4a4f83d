import json

import pytest

from pds_jax.latent.captions import read_captions
from pds_jax.types import PdsError


def test_a_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("a cat\r\nein Kätzchen\r\n".encode())
    assert read_captions(path) == ["a cat", "ein Kätzchen"]


def test_coco_annotations_give_one_caption_an_image(tmp_path):
    rows = [(7, 3, "third"), (2, 9, "late"), (2, 4, " an  early\none "), (7, 5, "other")]
    path = tmp_path / "captions_val2014.json"
    path.write_text(
        json.dumps({"annotations": [{"image_id": image, "id": i, "caption": text} for image, i, text in rows]})
    )
    assert read_captions(path) == ["an early one", "third"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "no prompts"),
        ("a.txt", "one\n\nthree\n", "prompt 2 is empty"),
        ("a.json", '{"images": []}', "neither a list"),
        ("a.json", '{"annotations": [{"id": 1}]}', "lacks"),
        ("a.json", "[1]", "neither a list"),
        ("a.json", "{", "JSON"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(PdsError, match=message):
        read_captions(tmp_path / name)
    with pytest.raises(PdsError, match="missing"):
        read_captions(tmp_path / "missing.txt")
