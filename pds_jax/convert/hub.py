"""Fetching a diffusers folder from the Hugging Face Hub, only when asked to."""

from __future__ import annotations

import re

from pds_jax.convert.tree import ConversionError

_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_FILES = ["model_index.json", "config.json", "*.safetensors", "*.bin", "unet/*", "scheduler/*"]


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``owner/model``."""
    return _ID.match(name) is not None


def fetch(name: str, allowed: bool) -> str:
    """Folder of a Hub model, downloaded if need be.

    Args:
      name: ``owner/model``.
      allowed: whether a download was asked for.

    Returns:
      The local folder.

    Raises:
      ConversionError: not allowed, huggingface_hub is missing, or the download failed.
    """
    if not allowed:
        raise ConversionError(
            f"{name} does not exist here; if it is a model on the Hugging Face Hub, fetch it by "
            f"scripts/convert_checkpoint.py --src={name} --allow_download, or by allow_download=True"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConversionError("a Hub id needs huggingface_hub: pip install 'pds_jax[convert]'") from error
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=_FILES)
    except Exception as error:  # network, permission and cache errors of several libraries
        raise ConversionError(f"cannot fetch {name} from the Hugging Face Hub: {error}") from error
