"""Scripts with flags: what is wrong with their command line is said in one line, with status 2."""

import pathlib
import subprocess
import sys

import pytest
from load_script import SCRIPTS, load

from pds_jax.types import PdsError


@pytest.mark.parametrize(
    "name", ["quickstart", "benchmark", "benchmark_precisions", "ffhq_memory", "kernels", "soak", "survive"]
)
def test_stray_words_are_refused_by_name(name):
    with pytest.raises(PdsError, match="unexpected words .*'photos'.*; every option starts with --"):
        load(name).main([name, "photos"])


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_reads_its_flags_in_one_way(path: pathlib.Path):
    text = path.read_text()
    assert "scripts.run(main)" in text or ("scripts.Arguments(__doc__)" in text and "one_line_errors()" in text)
    assert "app.run" not in text and "ArgumentParser(" not in text and "DEFINE_config_file" not in text


@pytest.mark.parametrize(
    "words, said",
    [
        (["fid", "calc", "--imgaes=x"], "fid: unknown flag --imgaes; did you mean --images?\nAll flags: --help\n"),
        (["export_model", "--wrkdir=x"],
         "export_model: unknown flag --wrkdir; did you mean --workdir?\nAll flags: --help\n"),
        (["fid"], "fid: type fid.py ref ... or fid.py calc ...; extractors: "),
        (["convert_checkpoint", "--src=x"], "convert_checkpoint: say what to convert and where the result goes: "),
        (["check_denoiser"], "check_denoiser: say which network and which images: --checkpoint="),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_status_2(words, said):
    command = [sys.executable, str(SCRIPTS / f"{words[0]}.py"), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith(said) and not done.stdout
