"""The command line of a script is read as that of pds_jax."""

import sys

import pytest
from absl import flags
from ml_collections import config_flags

from pds_jax.cli import scripts
from pds_jax.types import PdsError


@pytest.fixture
def values():
    values = flags.FlagValues()
    flags.DEFINE_integer("nfe", None, "Evaluations.", flag_values=values)
    flags.DEFINE_float("snr", None, "Ratio.", lower_bound=0.0, flag_values=values)
    flags.DEFINE_enum("table", None, ["fashion", "photos"], "Which.", flag_values=values)
    flags.DEFINE_multi_string("option", [], "name=value.", flag_values=values)
    flags.DEFINE_bool("quick", False, "Few.", flag_values=values)
    config_flags.DEFINE_config_file("config", None, "", lock_config=False, sys_argv=[], flag_values=values)
    return values


def test_flags_words_and_fields_of_a_configuration_are_read(values):
    words = ["calc", "--nfe=4", "--option=a=1", "--option=b=2", "--noquick", "--config=configs/digits.py"]
    assert scripts.read(["fid", *words, "--config.sampling.snr=0.2"], values) == ["fid", "calc"]
    assert values.nfe == 4 and values.option == ["a=1", "b=2"] and values.config.sampling.snr == 0.2


@pytest.mark.parametrize(
    "words, said",
    [
        (["--nef=3"], "unknown flag --nef; did you mean --nfe?"),
        (["--zzz"], "unknown flag --zzz\nAll flags: --help"),
        (["--nfe=3", "--nfe=4"], "--nfe is given twice"),
        (["--quick", "--noquick"], "--quick is given twice"),
        (["--nfe=some"], "--nfe=some: use an integer"),
        (["--snr=-1"], "--snr=-1: -1.0 is not a non-negative number"),
        (["--table=fashon"], "--table=fashon: use one of fashion|photos; did you mean fashion?"),
        (["--config=missing.py"], "--config=missing.py: there is no such file"),
        (["--config=configs"], "--config=configs: there is no such file"),
        (["--config=configs/own.py:n_iter=7"], "configuration argument 'n_iter' names no field; near: n_iters"),
        (["--config.sampling.snr=1"], "--config.sampling.snr=1: there is no configuration to change; add --config="),
        (["--config=configs/digits.py", "--config.sampling.sn=1"], "did you mean --config.sampling.snr?"),
    ],
)
def test_what_is_wrong_is_said_by_name(values, words, said):
    with pytest.raises(PdsError) as error:
        scripts.read(["fid", *words], values)
    assert str(error.value).startswith(said) or str(error.value).endswith(said)


@pytest.mark.parametrize(
    "code, said",
    [
        ("def get_config(:\n", ", line 1: SyntaxError: invalid syntax"),
        ("import no_such_module\n", ", line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config():\n    return {}['a']\n", ", line 2: KeyError: 'a'"),
        ("def get_config():\n    return 1 + 'a'\n", ", line 2: TypeError: unsupported operand"),
        ("def get_config():\n    return {'a': 1}\n", "returns no ml_collections.ConfigDict"),
    ],
)
def test_a_configuration_that_does_not_run_is_one_line(values, tmp_path, code, said):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(PdsError) as error:
        scripts.read(["fid", f"--config={path}"], values)
    first, *rest = str(error.value).splitlines()
    assert str(path) in first and said in first and rest == ["All flags: --help"]


def test_arguments_without_absl_are_read_likewise(monkeypatch):
    parser = scripts.Arguments("Text.")
    parser.add_argument("--steps", type=int, required=True)
    for words, said in (
        (["--step=3"], "unknown flag --step; did you mean --steps?"),
        (["--steps=3", "--steps=4"], "--steps is given twice"),
        (["--steps=x"], "argument --steps: invalid int value: 'x'"),
        ([], "the following arguments are required: --steps"),
        (["--steps=3", "photos"], "unrecognized arguments: photos"),
    ):
        monkeypatch.setattr(sys, "argv", ["export_model", *words])
        with pytest.raises(PdsError, match=said):
            parser.read()
    monkeypatch.setattr(sys, "argv", ["export_model", "--steps=3"])
    assert parser.read().steps == 3
