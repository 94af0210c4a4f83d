"""Completing a configuration: the fields that another program's file, or an earlier version's, does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from pds_jax.types import PdsError

SAMPLING: Mapping[str, Any] = {
    "method": "pc",
    "predictor": "reverse_diffusion",
    "corrector": "none",
    "snr": 0.16,
    "n_steps_each": 1,
    "noise_removal": True,
    "probability_flow": False,
    "speed_up": 1.0,
    "norm": "sample",
    "variant": "paper",
    "prior": "standard",
    "grid": "uniform",
    "solver_options": "",
}
PDS: Mapping[str, Any] = {
    "alpha": float("inf"),
    "recipe": "ijcv2025",
    "filters": "freq",
    "gain": 1.0,
    "statistics": "",
    "freq_mask_path": "",
    "space_mask_path": "",
    "r": 0.0,
    "lam": 1.0,
    "solenoidal": 0.0,
}
EVAL: Mapping[str, Any] = {
    "begin_ckpt": 9,
    "end_ckpt": 26,
    "batch_size": 1024,
    "enable_sampling": False,
    "num_samples": 50000,
    "enable_loss": True,
    "enable_bpd": False,
    "bpd_dataset": "test",
}
_DATA: Mapping[str, Any] = {"resize": False, "convert_images": False, "range": ()}
_TRAINING: Mapping[str, Any] = {"n_jitted_steps": 5}
_SEED = 42
# What the weights were trained with has no default.
_FACTS = {
    "training": ("sde", "continuous"),
    "data": ("image_size", "num_channels", "centered"),
    "model": ("name", "num_scales"),
}
# Not added to configurations of this package that lack them: folders of images that were begun with these go on.
_RECORDED_WHERE_SET = ("solver_options", "gain")


def complete(config: Any) -> ml_collections.ConfigDict:
    """A copy of a configuration with every field that a job here reads and score_sde's files do not have.

    The field ``device`` of score_sde_pytorch is left out.

    Args:
      config: a ``ConfigDict`` with score_sde's sections.

    Raises:
      PdsError: a field that says how the network was trained is missing.
    """
    fields = dict(config.to_dict())
    fields.pop("device", None)
    for section, names in _FACTS.items():
        for name in names:
            if name not in _section(fields, section):
                raise PdsError(
                    f"the configuration has no field {section}.{name}, which says how the network was trained; add it "
                    "to the configuration's file"
                )
    defaults: dict[str, Mapping[str, Any]] = {"sampling": SAMPLING, "eval": EVAL, "data": _DATA, "pds": PDS}
    if "optim" in fields:  # it describes a training
        defaults["training"] = _TRAINING
    ours = "pds" in fields
    for section, values in defaults.items():
        absent = {name: value for name, value in values.items() if not (ours and name in _RECORDED_WHERE_SET)}
        fields[section] = {**absent, **_section(fields, section)}
    fields.setdefault("seed", _SEED)
    return ml_collections.ConfigDict(fields)


def _section(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = fields.get(name, {})
    if not isinstance(section, dict):
        raise PdsError(f"the configuration's {name} is {section!r}, not a section of fields")
    return section
