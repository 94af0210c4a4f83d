"""Files of prompts: one a line, a JSON list, or COCO's annotations."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from pds_jax.io import files
from pds_jax.types import PdsError

_MAX_BYTES = 256 << 20


def read_captions(path: str | os.PathLike[str]) -> list[str]:
    """The prompts of a file; prompt i belongs to seed i.

    A ``.json`` file is a list of texts or holds COCO's ``annotations``; then every image has the caption of its lowest
    annotation id, images in the order of their ids. Any other file is UTF-8 text with a prompt a line.

    Raises:
      PdsError: no such file, none of these forms, or an empty prompt.
    """
    place = pathlib.Path(path)
    captions = _of_json(files.read_json(place), place) if place.suffix.lower() == ".json" else _of_text(place)
    if not captions:
        raise PdsError(f"{path} holds no prompts")
    for number, caption in enumerate(captions, 1):
        if not caption.strip():
            raise PdsError(f"{path}: prompt {number} is empty; leave out the line, or write a text")
    return captions


def _of_text(path: pathlib.Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise PdsError(f"{path} is larger than {_MAX_BYTES >> 20} MiB; no file of prompts is")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PdsError(f"cannot read prompts from {path}: {error}") from error
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n") if text else []


def _of_json(value: Any, path: pathlib.Path) -> list[str]:
    if isinstance(value, dict) and isinstance(value.get("annotations"), list):
        try:
            rows = [(int(row["image_id"]), int(row["id"]), row["caption"]) for row in value["annotations"]]
        except (KeyError, TypeError, ValueError) as error:
            raise PdsError(f"{path}: an annotation lacks image_id, id or caption") from error
        first = {image: caption for image, _, caption in sorted(rows, key=lambda row: row[:2], reverse=True)}
        value = [first[image] for image in sorted(first)]
    if not isinstance(value, list) or not all(isinstance(caption, str) for caption in value):
        raise PdsError(f"{path} is neither a list of texts nor COCO's annotations")
    return [" ".join(caption.split()) for caption in value]
