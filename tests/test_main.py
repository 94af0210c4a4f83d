"""The command line itself, as a user types it."""

import subprocess
import sys


def pds_jax(*words):
    return subprocess.run([sys.executable, "-m", "pds_jax.main", *words], capture_output=True, text=True, timeout=120)


def test_a_missing_flag_says_what_to_type():
    done = pds_jax()
    assert done.returncode != 0 and "--mode=sample" in done.stdout + done.stderr
    done = pds_jax("--mode=sample")
    assert done.returncode != 0 and "--workdir=" in done.stdout + done.stderr


def test_help_lists_every_flag_with_an_explanation():
    done = pds_jax("--help")
    for flag in ("--checkpoint", "--seeds", "--alpha", "--speed_up", "--freq_mask_path", "--eval_folder", "--norm"):
        assert flag in done.stdout.replace("--[no]", "--")


def test_an_unknown_mode_lists_the_known_ones():
    done = pds_jax("--mode=fly", "--workdir=x")
    assert done.returncode != 0 and "sample|train" in done.stdout + done.stderr


def test_a_checkpoint_that_is_not_there_is_one_clear_line(tmp_path):
    done = pds_jax("--mode=sample", f"--workdir={tmp_path}", "--checkpoint=nowhere")
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr
