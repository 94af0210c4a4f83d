"""Errors of the libraries below are one sentence with the way out; the environment is not overridden unsaid."""

import errno
import sys

import jax
import pytest

from pds_jax.cli.failures import check_ambient, explain, one_line_errors
from pds_jax.io import files
from pds_jax.types import PdsError


@pytest.mark.parametrize(
    "error, mode, wanted",
    [
        (PdsError("say so"), "sample", "say so"),
        (FloatingPointError("the loss is nan at step 3"), "train", "the loss is nan at step 3"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), "train",
         "memory is full: use a smaller --config.training.batch_size (RESOURCE_EXHAUSTED"),
        (PdsError("use a smaller --batch_size, or --max_batch=auto (RESOURCE_EXHAUSTED: 9 bytes)"), "eval",
         "memory is full: use a smaller --config.eval.batch_size"),
        (MemoryError("Unable to allocate 8 GiB"), "sample", "use a smaller --batch_size (Unable to allocate 8 GiB)"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "sample", "runs/x: No space left on device; free"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "eval", "runs/x: Permission denied"),
        (RuntimeError("Unable to initialize backend 'tpu': no TPU"), "sample", "set JAX_PLATFORMS=cpu"),
        (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: barrier"), "sample", "does not answer"),
    ],
)  # fmt: skip
def test_an_error_below_is_one_sentence(error, mode, wanted):
    said = explain(error, mode)
    assert wanted in said and "\n" not in said


def test_a_fault_of_the_program_keeps_its_traceback():
    assert explain(KeyError("x"), "sample") is None


@pytest.fixture
def ambient():
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "bfloat16")
    yield
    jax.config.update("jax_default_matmul_precision", before)


def test_a_precision_of_the_environment_is_refused_unless_the_flag_decides(ambient):
    with pytest.raises(PdsError, match="JAX_DEFAULT_MATMUL_PRECISION=bfloat16 asks .* --precision=float32, tf32"):
        check_ambient(None)
    check_ambient("float32")


def test_no_setting_or_the_default_is_taken():
    check_ambient(None)


@pytest.mark.parametrize(
    "error, status, wanted",
    [
        (PdsError("no images"), 2, "fid: no images\n"),
        (files.Stopped("SIGINT"), 130, "fid: stopped by SIGINT\n"),
    ],
)
def test_a_script_that_cannot_go_on_ends_with_one_line(monkeypatch, capsys, error, status, wanted):
    monkeypatch.setattr(sys, "argv", ["scripts/fid.py"])
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise error
    assert stop.value.code == status and capsys.readouterr().err == wanted
