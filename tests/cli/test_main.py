"""The command line itself, as a user types it."""

import dataclasses
import math
import pathlib
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from pds_jax.cli import flags, main, parse
from pds_jax.cli.failures import one_line_errors
from pds_jax.cli.help import help_text
from pds_jax.cli.options import RunOptions, SamplerOptions
from pds_jax.types import PdsError

ROOT = pathlib.Path(__file__).parents[2]
HELP = pathlib.Path(__file__).parents[1] / "golden" / "help.txt"
CONFIG = {"sampling", "pds", "eval", "training", "data", "model"}
SAMPLE = ("--mode=sample", "--workdir=runs/x")


def pds_jax(*words):
    return subprocess.run([sys.executable, "-m", "pds_jax.main", *words], capture_output=True, text=True, timeout=120)


def options(*words):
    values = absl_flags.FlagValues()
    flags.define(values)
    overrides = parse.read(["pds_jax", *words], values)
    return parse.run_options(values, overrides)


def test_a_tilde_is_the_users_folder(monkeypatch, tmp_path):
    """Shells leave it alone in --flag=~/x; a folder named ~ would be made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert options("--mode=sample", "--workdir=~/runs", "--checkpoint=photos").workdir == tmp_path / "runs"
    assert options("--mode=sample", "--workdir", "~/runs", "--checkpoint=photos").workdir == tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["fid", "--ref=~/ref.npz", "--seeds=0-3", "a~b"])
    with one_line_errors():
        assert sys.argv == ["fid", f"--ref={tmp_path}/ref.npz", "--seeds=0-3", "a~b"]


def test_help_is_the_recorded_text():
    """After a change of flags: ``pds_jax --help > tests/golden/help.txt``, and read it."""
    assert help_text() == HELP.read_text()


def test_help_lists_every_flag_with_an_explanation_within_the_width():
    text = help_text()
    for flag in flags.table():
        assert f"--{flag.name}=" in text or f"--[no]{flag.name}\n" in text or f"--[no]{flag.name} " in text
        assert flag.help.endswith("."), f"--{flag.name}: the help is a sentence"
        assert flag.default is not None or flag.field or flag.otherwise or "Required" in flag.help, flag.name
    assert max(map(len, text.splitlines())) <= 115


@pytest.mark.parametrize("mode", flags.MODES)
def test_help_of_a_task_has_its_flags_and_no_other(mode):
    lines = help_text(mode).splitlines()
    shown = {line.split("=")[0].removeprefix("  --").removeprefix("[no]") for line in lines if line.startswith("  --")}
    assert shown == {flag.name for flag in flags.table() if mode in flag.modes}


def test_flags_have_one_name_and_set_fields_of_known_sections():
    names = [flag.name for flag in flags.table()]
    assert len(names) == len(set(names))
    assert {flag.field.split(".")[0] for flag in flags.table() if flag.field} <= CONFIG


def test_every_flag_is_an_option_and_every_option_a_flag():
    of_the_process = {"cache_dir", "coordinator", "num_processes", "process_id"}
    fields = {field.name for kind in (RunOptions, SamplerOptions) for field in dataclasses.fields(kind)}
    known = {flag.option for flag in flags.table() if flag.kind != "override"} - of_the_process
    assert known == fields - {"sampler", "overrides"}


def test_flags_become_typed_options():
    found = options(
        *SAMPLE, "--alpha=5", "--radius=3.2", "--nfe=40", "--checkpoint=photos", "--seeds=3,7-8", "--shard=1/4",
        "--max_batch=auto",
    )  # fmt: skip
    assert found.sampler == SamplerOptions(alpha=5.0, r=3.2, nfe=40)
    assert (found.mode, found.workdir, found.checkpoint) == ("sample", pathlib.Path("runs/x"), "photos")
    assert (found.seeds, found.shard, found.max_batch, found.precision) == ((3, 7, 8), (1, 4), None, "float32")
    assert options(*SAMPLE, "--alpha=inf").sampler.alpha == math.inf
    assert options(*SAMPLE, "--alpha=tune", "--seeds", "0-1").sampler.alpha == "tune"
    assert options(*SAMPLE) == RunOptions("sample", pathlib.Path("runs/x"))
    found = options(
        *SAMPLE, "--stochasticity=M", "--spectrum=off", "--kappa=0.4", "--head_start=auto", "--colours",
        "--corrector_levels=0,1.5", "--nopilot_gain",
    )  # fmt: skip
    assert found.sampler == SamplerOptions(
        stochasticity="M", spectrum=0.0, kappa=0.4, head_start="auto", colours=True, corrector_levels=(0.0, 1.5),
        pilot_gain=False,
    )  # fmt: skip
    found = options(*SAMPLE, "--stochasticity=0.3", "--spectrum=0.5", "--head_start=4").sampler
    assert (found.stochasticity, found.spectrum, found.head_start) == (0.3, 0.5, 4.0)
    found = options("--mode=class_conditional", "--workdir=x", "--labels=3,1", "--guidance=0")
    assert found.labels == (3, 1) and found.guidance == 0
    assert options("--mode=eval", "--workdir=x", "--metrics=fid,kid").metrics == ("fid", "kid")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.labels = None


def test_help_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pds_jax", "--help"])
    main.run()
    assert capsys.readouterr().out == help_text()
    monkeypatch.setattr(sys, "argv", ["pds_jax", "--mode=deblur", "--help"])
    main.run()
    assert capsys.readouterr().out == help_text("deblur")


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["--config=configs/nope.py"], "configs/nope.py: there is no such file"),
        (["--config=configs/photos.py:speed_up=fast"], "speed_up=fast: not a float"),
        (["--snr=x"], "--snr=x"),
        (["--sed=1"], "unknown flag --sed; did you mean --seeds?"),
        (["--corector=none"], "did you mean --corrector?"),
        (["--nef=40"], "did you mean --nfe?"),
        (["--precision=float23"], "did you mean float32?"),
        (["--colors"], "did you mean --colours?"),
        (["--headstart=4"], "did you mean --head_start?"),
        ([*SAMPLE, "--kapa=0.4"], "did you mean --kappa?"),
        (["--mode=train", "--workdir=x", "--kappa=1"], "--kappa has no effect here: it is for --mode="),
        (["--nosuchthing"], "unknown flag --nosuchthing"),
        (["--mode=fly", "--workdir=x"], "sample|train"),
        (["photos"], "unexpected words ['photos']"),
        ([], "type --mode=sample|train"),
        (["--mode=sample"], "type --workdir=FOLDER, for example"),
        ([*SAMPLE, "--alpha=5", "--alpha=3"], "--alpha is given twice"),
        ([*SAMPLE, "--config.sampling.snr"], "--config.sampling.snr: write --config.section.field=value"),
        ([*SAMPLE, "--norm=batches"], "--norm=batches: use one of sample|batch"),
        ([*SAMPLE, "--mask=m.png"], "--mask has no effect here: it is for --mode=inpaint; leave it out"),
        ([*SAMPLE, "--metrics=fid"], "--metrics has no effect here: it is for --mode="),
        (["--mode=train", "--workdir=x", "--seeds=0-3"], "--seeds has no effect here: it is for --mode="),
        (["--mode=eval", "--workdir=x", "--shard=0/2"], "--shard has no effect here: it is for --mode="),
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


@pytest.mark.parametrize(
    "word, wanted",
    [
        ("--seeds=3-1", "--seeds='3-1': the range '3-1' runs backwards"),
        ("--seeds=1,1", "--seeds='1,1': seed 1 is given twice"),
        *(
            (f"--eval_folder={text}", f"--eval_folder={text}: write the name of a folder in --workdir")
            for text in ("", ".", "..", "../x", "a/../../x", "/tmp/x")
        ),
        ("--alpha=strong", "--alpha=strong: use a number above 1"),
        ("--alpha=1", "above 1"),
        *((f"--max_batch={text}", f"--max_batch={text}: ") for text in ("0", "-1", "many", "1.5")),
        ("--shard=3/2", "--shard='3/2'"),
        ("--stochasticity=some", "--stochasticity=some: use a number, or M"),
        ("--spectrum=half", "--spectrum=half: use a number, or on or off"),
        ("--head_start=early", "--head_start=early: use a number, or auto or off"),
        ("--corrector_levels=1", "--corrector_levels=1: write LOW,HIGH"),
        ("--plugin=nowhere.py", "--plugin=nowhere.py: No such file"),
    ],
)
def test_a_value_that_cannot_be_used_names_its_flag(word, wanted):
    with pytest.raises(PdsError) as refusal:
        options(*SAMPLE, word)
    assert wanted in str(refusal.value)
    with pytest.raises(PdsError, match="--labels='a': 'a' is neither a label"):
        options("--mode=class_conditional", "--workdir=x", "--labels=a")


def test_an_empty_workdir_is_refused():
    with pytest.raises(PdsError, match="--workdir= is empty"):
        options(*(word for word in SAMPLE if not word.startswith("--workdir")), "--workdir=")


@pytest.mark.parametrize(
    "override, wanted",
    [
        ("sampling.nosuch=1", "no such field"),
        ("sampling.srn=0.1", "did you mean --config.sampling.snr?"),
        ("samplng.snr=0.1", "did you mean --config.sampling.snr?"),
        ("sampling=0.1", "no such field"),
        ("eval.num_samples=many", "--config.eval.num_samples=many: use a value of type int"),
        ("eval.num_samples=1.5", "use a value of type int"),
        ("eval.enable_bpd=maybe", "use a value of type bool"),
        ("model.ch_mult=1", "use a value of type list, as"),
    ],
)
def test_a_field_that_cannot_be_set_is_named(override, wanted):
    found = options(*SAMPLE, "--checkpoint=photos", f"--config.{override}")
    with pytest.raises(PdsError) as refusal:
        found.configuration()
    assert wanted in str(refusal.value)


@pytest.mark.parametrize("checkpoint", ["photos", "digits", "fashion"])
def test_how_images_are_read_can_be_set_whatever_the_age_of_the_configuration(checkpoint):
    words = ("--config.data.range=-1,1", "--config.data.resize=true", "--config.data.convert_images=1")
    data = options(*SAMPLE, f"--checkpoint={checkpoint}", *words).configuration().data
    assert tuple(data.range) == (-1, 1) and data.resize is True and data.convert_images is True
    with pytest.raises(PdsError, match="data.range=3: use a value of type"):
        options(*SAMPLE, f"--checkpoint={checkpoint}", "--config.data.range=3").configuration()


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("n_iter=7", "configuration argument 'n_iter' names no field; near: n_iters"),
        ("n_iters=many", "configuration argument training.n_iters=many: not"),
        ("batch_size=8", "configuration argument 'batch_size' could be any of"),
        ("dataset=a,b", "configuration argument 'b': write runlocal or key=value, separated by commas; a value that"),
    ],
)
def test_a_wrong_argument_of_a_configuration_is_said_without_the_class_of_the_error(argument, wanted):
    with pytest.raises(PdsError) as refusal:
        options(*SAMPLE, f"--config={ROOT}/configs/own.py:{argument}")
    assert str(refusal.value).startswith(wanted)


def test_a_fault_in_a_configuration_keeps_its_place_and_class(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return None + 1\n")
    with pytest.raises(PdsError, match="mine.py, line 2: TypeError: unsupported operand"):
        options(*SAMPLE, f"--config={tmp_path}/mine.py")


def test_a_field_may_be_set_before_the_file_is_named(monkeypatch):
    """ml_collections reads sys.argv by itself, and refused this order."""
    words = [*SAMPLE, "--config.sampling.snr=0.1", f"--config={ROOT}/configs/photos.py"]
    monkeypatch.setattr("sys.argv", ["pds_jax", *words])
    assert options(*words).configuration().sampling.snr == 0.1


def test_fields_are_set_with_and_without_a_file(tmp_path):
    words = ("--config.sampling.snr=0.1", "--config.model.ch_mult=(1, 2)", "--config.eval.enable_bpd", "true")
    for more in ((), (f"--config={ROOT}/configs/photos.py",)):
        config = options(*SAMPLE, "--checkpoint=photos", *words, *more).configuration()
        assert config.sampling.snr == 0.1 and tuple(config.model.ch_mult) == (1, 2) and config.eval.enable_bpd is True
    with pytest.raises(PdsError, match="holds no configuration to change; add --config=FILE.py"):
        options("--mode=sample", f"--workdir={tmp_path}", words[0]).configuration()


def test_a_checkpoint_that_is_not_there_is_one_clear_line(tmp_path):
    done = pds_jax("--mode=sample", f"--workdir={tmp_path}", "--checkpoint=nowhere")
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr
