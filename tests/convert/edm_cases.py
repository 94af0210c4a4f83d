"""The recorded networks of EDM and guided-diffusion, read by our converters."""

import functools
import json

import jax
import ml_collections
import numpy as np
from convert_cases import GOLDEN

from pds_jax import convert, denoisers
from pds_jax.convert import adm
from pds_jax.models import create_model

EDM, ADM = GOLDEN / "edm", GOLDEN / "adm"
SNAPSHOTS = {
    "edm_adm_cond": ".pkl.gz",
    "edm_ddpmpp_cond": ".pkl.gz",
    "edm_ncsnpp_uncond": ".pkl",
    "iddpm_adm_cond_2heads": ".pkl.gz",
    "ve_ncsnpp_uncond": ".pkl.gz",
    "vp_ddpmpp_cond": ".pkl.gz",
}
UNETS = ("unet64like_new_order", "unet_legacy_order_uncond_conv_resample")
CLASSIFIER = "classifier_attention_pool"


def snapshot(name):
    return EDM / f"{name}{SNAPSHOTS[name]}"


def state_dict(name):
    return ADM / f"{name}.pt.gz"


def arrays(folder, name):
    """Recorded arrays, images as NHWC."""
    with np.load(folder / f"{name}.io.npz") as z:
        return {key: z[key].transpose(0, 2, 3, 1) if z[key].ndim == 4 else z[key] for key in z.files}


def adm_config(name, **options):
    settings = json.loads((ADM / f"{name}.json").read_text())["settings"]
    return adm.config_from_settings(settings, classifier=name == CLASSIFIER, **options)


@functools.cache
def denoiser(name):
    config = convert.config_of(snapshot(name))
    params, _ = convert.load_checkpoint(snapshot(name), config)
    return config, denoisers.get_denoiser(config, create_model(config), params)


@functools.cache
def network(name):
    config = adm_config(name)
    params, _ = convert.load_checkpoint(state_dict(name), config)
    return config, create_model(config), params


def once(f):
    """jax.jit without LLVM's optimisations: the functions here run once."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def changed(config, **model):
    copy = ml_collections.ConfigDict(config.to_dict())
    copy.model.update(model)
    return copy
