"""The command line itself, as a user types it."""

import pathlib
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from pds_jax.cli import flags, main

ROOT = pathlib.Path(__file__).parents[2]
HELP = pathlib.Path(__file__).parents[1] / "golden" / "help.txt"
CONFIG = {"sampling", "pds", "eval", "training", "data", "model"}


def pds_jax(*words):
    return subprocess.run([sys.executable, "-m", "pds_jax.main", *words], capture_output=True, text=True, timeout=120)


def test_help_is_the_recorded_text():
    """After a change of flags: ``pds_jax --help > tests/golden/help.txt``, and read it."""
    assert flags.help_text() == HELP.read_text()


def test_help_lists_every_flag_with_an_explanation_within_the_width():
    text = flags.help_text()
    for flag in flags.table():
        assert f"--{flag.name}=" in text or f"--[no]{flag.name}\n" in text
        assert flag.help.endswith("."), f"--{flag.name}: the help is a sentence"
        assert flag.default is not None or flag.field or flag.otherwise or "Required" in flag.help, flag.name
    assert max(map(len, text.splitlines())) <= 115


def test_flags_have_one_name_and_set_fields_of_known_sections():
    names = [flag.name for flag in flags.table()]
    assert len(names) == len(set(names))
    assert {flag.field.split(".")[0] for flag in flags.table() if flag.field} <= CONFIG


def test_flags_given_become_overrides_and_the_rest_options():
    values = absl_flags.FlagValues()
    for flag in flags.table():
        kind = absl_flags.DEFINE_float if flag.kind is float else absl_flags.DEFINE_string
        kind(flag.name, flag.default if flag.kind is not bool else None, flag.help, flag_values=values)
    values(["pds_jax", "--alpha=5", "--radius=3.2", "--checkpoint=photos"])
    assert flags.overrides(values) == {"pds.alpha": "5", "pds.r": 3.2}
    assert flags.options(values)["checkpoint"] == "photos" and flags.options(values)["seeds"] == "0-15"
    fields = {flag.name: flag.field for flag in flags.table()}
    assert [fields[name] for name in ("grid", "method", "variant", "prior", "predictor", "solenoidal")] == [
        "sampling.grid", "sampling.method", "sampling.variant", "sampling.prior", "sampling.predictor",
        "pds.solenoidal",
    ]  # fmt: skip
    assert not {"mode", "workdir", "config", "alpha"} & set(flags.options(values))


def test_help_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pds_jax", "--help"])
    main.run()
    assert capsys.readouterr().out == flags.help_text()


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["--config=configs/nope.py"], "configs/nope.py: there is no such file"),
        (["--config=configs/photos.py:speed_up=fast"], "speed_up=fast: not a float"),
        (["--config=configs/photos.py", "--config.sampling.nosuch=1"], "nosuch"),
        (["--config.sampling.snr=0.1"], "beside --config=FILE.py"),
        (["--snr=x"], "--snr=x"),
        (["--sed=1"], "Unknown command line flag 'sed'"),
        (["--mode=fly", "--workdir=x"], "sample|train"),
        (["photos"], "unexpected words ['photos']"),
        ([], "type --mode=sample|train"),
        (["--mode=sample"], "type --workdir=FOLDER, for example"),
    ],
)
def test_a_mistake_in_the_flags_is_one_clear_line(words, wanted, capsys, monkeypatch):
    """In this process, on a registry of flags of its own."""
    values = absl_flags.FlagValues()
    flags.define(values)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", ["pds_jax", *words])
    with pytest.raises(SystemExit) as stop:
        main.parse(["pds_jax", *words], values)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and wanted in said and "Traceback" not in said and len(said.splitlines()) <= 3


def test_a_checkpoint_that_is_not_there_is_one_clear_line(tmp_path):
    done = pds_jax("--mode=sample", f"--workdir={tmp_path}", "--checkpoint=nowhere")
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr
