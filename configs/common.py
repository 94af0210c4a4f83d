"""Shared parts of configurations: the argument after the colon, the small `runlocal` form, options of networks.

``--config=configs/ve/cifar10_ncsnpp_continuous.py:speed_up=20,alpha=5`` and
``--config=configs/ve/cifar10_ncsnpp_continuous.py:runlocal`` both set `arg`.
"""

import ast
import difflib

import ml_collections

SECTIONS = ("training", "sampling", "pds", "eval", "data", "model", "optim")


def finish(config: ml_collections.ConfigDict, arg: str = "") -> ml_collections.ConfigDict:
    """Apply an argument such as '', 'runlocal' or 'runlocal,speed_up=20,eval.batch_size=8', left to right."""
    for word in filter(None, (word.strip() for word in arg.split(","))):
        if word == "runlocal":
            shrink(config)
        elif "=" in word:
            key, text = (part.strip() for part in word.split("=", 1))
            _assign(config, _path(config, key), text)
        else:
            raise ValueError(
                f"configuration argument {word!r}: write runlocal or key=value, separated by commas; a value that "
                "holds a comma is written --config.section.field=value"
            )
    return config


def _path(config: ml_collections.ConfigDict, key: str) -> str:
    """The full path of a field named by itself ('alpha') or by its path ('pds.alpha')."""
    paths = ["seed"] + [f"{s}.{field}" for s in SECTIONS if s in config for field in config[s]]
    if key in paths:
        return key
    found = [path for path in paths if path.split(".")[-1] == key]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"configuration argument {key!r} could be any of {', '.join(found)}: write one of these")
    near = difflib.get_close_matches(key, [path.split(".")[-1] for path in paths] + paths)
    raise ValueError(f"configuration argument {key!r} names no field" + (f"; near: {', '.join(near)}" if near else ""))


def _assign(config: ml_collections.ConfigDict, path: str, text: str) -> None:
    section, _, field = path.rpartition(".")
    owner = config[section] if section else config
    value = _parse(path, text, owner[field])
    with owner.ignore_type():  # pds.alpha is a number or 'auto'
        owner[field] = value


def _parse(path: str, text: str, old: object) -> object:
    """Read text as the type of the old value; a tuple is written 1:2:2, and so is a size of H:W."""
    try:
        if path == "pds.alpha":
            return text if text in ("auto", "tune") else float(text)
        if path == "data.image_size" and ":" in text:
            height, width = (int(part) for part in text.split(":"))
            return height, width
        if isinstance(old, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(old, (tuple, list)):
            return tuple(ast.literal_eval(part) for part in text.split(":"))
        return type(old)(text)
    except (KeyError, ValueError, SyntaxError):
        raise ValueError(f"configuration argument {path}={text}: not a {type(old).__name__} like {old!r}") from None


def shrink(config: ml_collections.ConfigDict) -> None:
    """Make everything small enough for a CPU in seconds, on images that need no download; the structure is kept."""
    config.training.update(
        batch_size=4, n_iters=20, snapshot_freq=10, snapshot_freq_for_preemption=10, log_freq=5, eval_freq=10,
        n_jitted_steps=1,
    )  # fmt: skip
    config.eval.update(batch_size=4, num_samples=8, begin_ckpt=1, end_ckpt=2)
    config.sampling.n_steps_each = min(config.sampling.n_steps_each, 2)
    config.optim.warmup = min(config.optim.warmup, 5)
    if config.data.dataset not in ("digits", "fashion", "landscapes", "photos"):
        # The deeper RefineNets halve more often.
        config.data.update(dataset="photos", image_size=32 if config.model.name == "ncsnv2_128" else 16)
    _shrink_model(config.model)


def _shrink_model(model: ml_collections.ConfigDict) -> None:
    # Not fewer than beta_max = 20 scales: VP's discrete beta would reach 1.
    model.num_scales = min(model.num_scales, 40)
    if "num_classes" in model:
        model.num_classes = model.num_scales
    if model.get("label_dim", 0):
        model.label_dim = min(model.label_dim, 10)
    # DDPM and ADM normalise over 32 groups.
    model.nf = 32 if model.name in ("ddpm", "adm", "adm_classifier") else 8
    if "ch_mult" in model:
        model.update(ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,))


def ncsnpp(model: ml_collections.ConfigDict, **options: object) -> None:
    """NCSN++'s options as on CIFAR-10; the VP networks lower `scale_by_sigma` and raise `ema_rate`."""
    model.update(
        name="ncsnpp",
        scale_by_sigma=True,
        ema_rate=0.999,
        normalization="GroupNorm",
        nonlinearity="swish",
        nf=128,
        ch_mult=(1, 2, 2, 2),
        num_res_blocks=4,
        attn_resolutions=(16,),
        resamp_with_conv=True,
        conditional=True,
        fir=True,
        fir_kernel=(1, 3, 3, 1),
        skip_rescale=True,
        resblock_type="biggan",
        progressive="none",
        progressive_input="residual",
        progressive_combine="sum",
        attention_type="ddpm",
        init_scale=0.0,
        fourier_scale=16,
        conv_size=3,
    )
    model.update(**options)


def ncsnpp_vp(model: ml_collections.ConfigDict, **options: object) -> None:
    """NCSN++ for VP and sub-VP: positional labels, no division by sigma, slower average."""
    ncsnpp(model, scale_by_sigma=False, ema_rate=0.9999, embedding_type="positional")
    model.update(**options)


def ddpmpp(model: ml_collections.ConfigDict, **options: object) -> None:
    """DDPM++: NCSN++ without FIR resampling and residual input.

    score_sde's DDPM++ files say 'biggan' blocks, and its DDPM++ checkpoints have them.
    """
    ncsnpp_vp(model, fir=False, progressive_input="none")
    model.update(**options)


def ncsnpp_256(model: ml_collections.ConfigDict, sigma_max: float) -> None:
    """NCSN++ at 256x256: seven resolutions, pyramids in and out."""
    ncsnpp(
        model,
        sigma_max=sigma_max,
        ch_mult=(1, 1, 2, 2, 2, 2, 2),
        num_res_blocks=2,
        progressive="output_skip",
        progressive_input="input_skip",
    )


def ddpm(model: ml_collections.ConfigDict, **options: object) -> None:
    """DDPM of Ho et al. as on CIFAR-10."""
    model.update(
        name="ddpm",
        scale_by_sigma=False,
        ema_rate=0.9999,
        normalization="GroupNorm",
        nonlinearity="swish",
        nf=128,
        ch_mult=(1, 2, 2, 2),
        num_res_blocks=2,
        attn_resolutions=(16,),
        resamp_with_conv=True,
        conditional=True,
    )
    model.update(**options)


def refinenet(model: ml_collections.ConfigDict, **options: object) -> None:
    """NCSN and NCSNv2: RefineNet with InstanceNorm++."""
    model.update(
        name="ncsnv2_64",
        scale_by_sigma=True,
        ema_rate=0.999,
        normalization="InstanceNorm++",
        nonlinearity="elu",
        nf=128,
        interpolation="bilinear",
    )
    model.update(**options)


def ncsn(config: ml_collections.ConfigDict, *, n_steps_each: int, snr: float, **options: object) -> None:
    """NCSN (v1), conditional on the noise level by its normalisation; ALD sampling; Adam at 1e-3 without warm-up.

    Techniques 1, 2 and 4 of NCSNv2 are more scales up to a larger sigma, and a step size for them; 5 is the
    average of the weights (`ema_rate`).
    """
    smld(config, predictor="none", corrector="ald", n_steps_each=n_steps_each, snr=snr)
    refinenet(config.model, name="ncsn", scale_by_sigma=False)
    config.model.update(**options)
    # score_sde's files lack num_classes, without which its network cannot be built: one class a noise level.
    config.model.num_classes = config.model.num_scales
    ncsn_optim(config.optim, lr=1e-3)


def ncsn_optim(optim: ml_collections.ConfigDict, lr: float) -> None:
    """Adam without warm-up and clipping."""
    optim.update(lr=lr, amsgrad=False, warmup=0, grad_clip=-1.0)


def smld(config: ml_collections.ConfigDict, **sampling: object) -> None:
    """VE at discrete noise levels (SMLD)."""
    ve(config, **sampling)
    config.training.continuous = False


def ve(config: ml_collections.ConfigDict, **sampling: object) -> None:
    """VE SDE in continuous time, sampled with PC."""
    config.training.update(sde="vesde", continuous=True)
    config.sampling.update(method="pc", predictor="reverse_diffusion", corrector="langevin")
    config.sampling.update(**sampling)


def vp(config: ml_collections.ConfigDict, sde: str = "vpsde", **sampling: object) -> None:
    """VP (or sub-VP) SDE in continuous time on images in [-1, 1], sampled with Euler-Maruyama."""
    config.training.update(sde=sde, continuous=True, reduce_mean=True)
    config.sampling.update(method="pc", predictor="euler_maruyama", corrector="none")
    config.sampling.update(**sampling)
    config.data.centered = True


def ddpm_steps(config: ml_collections.ConfigDict, **sampling: object) -> None:
    """VP at discrete noise levels (DDPM), ancestral sampling."""
    vp(config, predictor="ancestral_sampling")
    config.sampling.update(**sampling)
    config.training.continuous = False


def pds_sections(config: ml_collections.ConfigDict) -> None:
    """The fields that score_sde does not have: preconditioned and few-step sampling. All off."""
    config.sampling.update(
        speed_up=1.0,  # N = num_scales / speed_up iterations
        norm="sample",  # Langevin step from each image's norms; "batch": their mean, as the originals
        variant="paper",
        prior="standard",
        grid="uniform",
        solver_options="",  # "order=2,rho=5": options of the predictor and the grid
    )
    config.pds = ml_collections.ConfigDict(
        dict(
            alpha=float("inf"),  # strength; inf is no preconditioning
            recipe="ijcv2025",
            filters="freq",  # "space", "both", or "flat": M = gain I, without data
            gain=1.0,
            statistics="",
            freq_mask_path="",
            space_mask_path="",
            r=0.0,
            lam=1.0,
            solenoidal=0.0,  # strength of the skew drift S beside M Mᵀ
        )
    )
