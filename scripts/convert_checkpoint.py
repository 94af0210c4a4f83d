r"""Convert a checkpoint of score_sde, score_sde_pytorch, PDS or diffusers to pds_jax, or back.

    python scripts/convert_checkpoint.py --src=checkpoint_26 --out=church \
        --config=configs/ve/church_ncsnpp_continuous.py
    python scripts/convert_checkpoint.py --src=church --out=church.pth --kind=score_sde_torch

The kind of --src is seen from its content. The report names every leaf; the last line of output is JSON.
"""

import json
import pathlib
from typing import Any

from absl import flags

from pds_jax import convert
from pds_jax.cli import scripts
from pds_jax.convert import edm
from pds_jax.io.files import check_writable
from pds_jax.types import PdsError

FLAGS = flags.FLAGS
flags.DEFINE_string("src", None, "Checkpoint: a file, a folder, or a Hugging Face Hub id with --allow_download.")
scripts.define_config("config", "Configuration of the network; our own models carry theirs.")
flags.DEFINE_string("out", None, "Where the result goes: a folder, or a .pth file for --kind=score_sde_torch.")
flags.DEFINE_enum("kind", "safetensors", list(convert.EXPORTS), "What to write.")
flags.DEFINE_string("like", None, "Write a copy of this EDM snapshot with the weights of --src, instead of --kind.")
flags.DEFINE_bool("raw_weights", False, "Take the raw weights instead of their moving average.")
flags.DEFINE_alias("raw", "raw_weights")
flags.DEFINE_bool("parity", True, "Compare with the network of diffusers, if diffusers is installed.")
flags.DEFINE_bool("allow_download", False, "Fetch --src from the Hugging Face Hub if it is an id such as owner/model.")


def parity(kind: str, source: str, config: Any, params: Any) -> float | None:
    """Print and return the parity number, or print why there is none."""
    from pds_jax.convert.parity import with_diffusers

    if kind != "diffusers":
        print(f"parity: not run, there is no package of {kind} to run; recorded outputs are compared in tests/convert")
        return None
    try:
        error = with_diffusers(source, config, params, use_ema=not FLAGS.raw_weights)
    except PdsError as reason:
        print(f"parity: not run, {reason}")
        return None
    print(f"parity: UNet2DModel and pds_jax differ by {error:.2e} relative")
    return error


def main(argv: list[str]) -> None:
    """Read, report, write."""
    scripts.refuse_words(argv)
    if not FLAGS.src or not FLAGS.out:
        raise PdsError("say what to convert and where the result goes: --src=PATH and --out=PATH")
    if FLAGS.like is not None and FLAGS["kind"].present:
        raise PdsError(f"--like={FLAGS.like} writes an EDM snapshot; leave --kind={FLAGS.kind} out")
    if FLAGS.like is not None and not pathlib.Path(FLAGS.like).is_file():
        raise PdsError(f"--like={FLAGS.like}: there is no such file; give a snapshot of EDM (.pkl)")
    source = convert.locate(FLAGS.src, FLAGS.allow_download)
    config = FLAGS.config or convert.config_of(source)
    if FLAGS.like is None:
        convert.check_export(config, FLAGS.kind)
        convert.check_place(FLAGS.out, FLAGS.kind)
    else:
        check_writable(FLAGS.out)
    params, report = convert.load_checkpoint(source, config, use_ema=not FLAGS.raw_weights)
    print(report)
    error = parity(report.kind, source, config, params) if FLAGS.parity else None
    if FLAGS.like is None:
        convert.export(params, config, FLAGS.out, FLAGS.kind)
    else:
        edm.rewrite(params, config, FLAGS.like, FLAGS.out)
    kind = FLAGS.kind if FLAGS.like is None else "edm"
    result = {**report.summary(), "out": str(pathlib.Path(FLAGS.out)), "out_kind": kind, "parity": error}
    print(json.dumps(result))


if __name__ == "__main__":
    scripts.run(main)
