"""CLIP's tokens by the ``tokenizers`` library, from the files of a folder."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pds_jax.convert.tree import ConversionError
from pds_jax.io import files

_LENGTH = 77
_ADDED = ("bos_token", "eos_token", "pad_token")
_SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
# Words, single digits, runs of other signs, and English contractions; byte pairs are merged within each of them.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Texts as numbers.

    Attributes:
      ids: (n, length) int32: begin, tokens, end, padding.
      cut: for each text what did not fit, "" where all did.
    """

    ids: np.ndarray
    cut: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ClipTokenizer:
    """Texts to numbers, as transformers' ``CLIPTokenizer`` does it with ``padding="max_length", truncation=True``.

    Attributes:
      backend: a ``tokenizers.Tokenizer``.
      begin: number of the first token.
      end: number of the token after the text.
      pad: number of the padding.
      length: tokens of a text, begin and end included.
    """

    backend: Any
    begin: int
    end: int
    pad: int
    length: int

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokens of texts."""
        ids = np.full((len(texts), self.length), self.pad, np.int32)
        cut = []
        for row, (text, found) in enumerate(
            zip(texts, self.backend.encode_batch(list(texts), add_special_tokens=False), strict=True)
        ):
            room = self.length - 2
            kept = [self.begin, *found.ids[:room], self.end]
            ids[row, : len(kept)] = kept
            cut.append(text[found.offsets[room][0] :] if len(found.ids) > room else "")
        return Tokens(ids, tuple(cut))


def load_tokenizer(folder: str | os.PathLike[str]) -> ClipTokenizer:
    """The tokenizer of a folder.

    Args:
      folder: with ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``; ``tokenizer_config.json`` and
        ``special_tokens_map.json`` are read where they are there.

    Raises:
      ConversionError: files are missing or damaged, or it is no CLIP tokenizer.
    """
    folder = pathlib.Path(folder)
    config = _optional(folder / "tokenizer_config.json")
    kind = config.get("tokenizer_class", "CLIPTokenizer")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise ConversionError(f"{folder}: the tokenizer is a {kind}, which is not supported; CLIPTokenizer is")
    names = _special_names(config, _optional(folder / "special_tokens_map.json"))
    length = config.get("model_max_length", _LENGTH)
    if type(length) is not int or not 3 <= length <= 1 << 20:  # transformers writes 1e30 for "no limit"
        length = _LENGTH
    backend = _backend(folder, names)
    numbers = {}
    for role in _ADDED:
        numbers[role] = backend.token_to_id(names[role])
        if numbers[role] is None:
            raise ConversionError(f"{folder}: its vocabulary lacks the {role} {names[role]!r}")
    _find_in_texts(backend, {names[role] for role in _ADDED})
    return ClipTokenizer(backend, numbers["bos_token"], numbers["eos_token"], numbers["pad_token"], length)


def _optional(path: pathlib.Path) -> dict[str, Any]:
    fields = files.read_json(path) if path.is_file() else {}
    if not isinstance(fields, dict):
        raise ConversionError(f"{path} holds no dictionary")
    return fields


def _special_names(config: dict[str, Any], extra: dict[str, Any]) -> dict[str, str]:
    """Text of the special tokens; files without ``added_tokens_decoder`` have the last word in special_tokens_map."""
    given = {**config, **({} if "added_tokens_decoder" in config else extra)}
    names: dict[str, str] = {}
    for role in (*_SPECIAL, "pad_token"):
        value = given.get(role, _SPECIAL.get(role, _SPECIAL["eos_token"]))
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise ConversionError(f"{role} of the tokenizer is {value!r}, not a text")
        names[role] = text
    return names


def _backend(folder: pathlib.Path, names: dict[str, str]) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConversionError("prompts need the tokenizers library: pip install 'pds_jax[latent]'") from error
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
        raise ConversionError(
            f"{folder} holds neither tokenizer.json nor vocab.json and merges.txt; get the tokenizer of this model, "
            "prompts cannot be read without it"
        )
    try:
        if whole.is_file():
            backend = Tokenizer.from_file(str(whole))
            backend.no_padding()
            backend.no_truncation()
        else:
            backend = _from_merges(vocabulary, merges, names["unk_token"])
        return backend
    except ConversionError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ConversionError(f"{folder}: the tokenizer's files are damaged: {error}") from error


def _find_in_texts(backend: Any, names: set[str]) -> None:
    """Find special tokens that a text spells out, as CLIPTokenizer does; where "!" is the padding, that too."""
    from tokenizers import AddedToken

    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in sorted(names)])


def _from_merges(vocabulary: pathlib.Path, merges: pathlib.Path, unknown: str) -> Any:
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    table = files.read_json(vocabulary)
    if not isinstance(table, dict) or not all(type(number) is int for number in table.values()):
        raise ConversionError(f"{vocabulary} is no dictionary of numbers")
    lines = merges.read_text(encoding="utf-8").splitlines()
    words = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in words):
        raise ConversionError(f"{merges}: a line is not a pair of tokens")
    pairs = [(first, second) for first, second in words]
    backend = Tokenizer(BPE(vocab=table, merges=pairs, end_of_word_suffix="</w>", unk_token=unknown))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return backend
