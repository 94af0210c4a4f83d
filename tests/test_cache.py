import os
import subprocess
import sys

import jax
import jaxlib
import pytest

from pds_jax import cache

SCHEDULER = "--xla_cpu_scheduler_type"
CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
    "folder, variable, expected",
    [
        (None, "/ambient", "/ambient"),
        (None, "", None),
        ("/given", "/ambient", "/given"),
        ("", "/ambient", None),
        (None, None, "/home/pds_jax/xla"),
    ],
)
def test_the_flag_the_environment_and_the_users_folder_decide_in_this_order(monkeypatch, folder, variable, expected):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", "/home")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if variable is not None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", variable)
    try:
        cache.use_compilation_cache(folder)
        assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--some=1")
    monkeypatch.setattr(jaxlib, "__version__", "0.10.2")
    return monkeypatch


def test_flags_are_set_once_beside_the_users(flags):
    cache.set_cpu_flags()
    cache.set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == f"--some=1 {SCHEDULER}=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED {CONVOLUTIONS}="


def test_nothing_is_set_where_xla_might_not_know_the_flag(flags):
    flags.setattr(jaxlib, "__version__", "0.12.0.1")
    cache.set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == f"--some=1 {CONVOLUTIONS}="
    for version in ("0.8.0", "0.9.2", "0.13.0", "1.0.0"):
        flags.setenv("XLA_FLAGS", "--some=1")
        flags.setattr(jaxlib, "__version__", version)
        cache.set_cpu_flags()
        assert os.environ["XLA_FLAGS"] == "--some=1"


def test_this_jaxlib_knows_the_flags_that_are_set():
    flags = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    program = "from pds_jax.cache import set_cpu_flags; set_cpu_flags(); import jax; print(jax.numpy.ones(3).sum())"
    assert subprocess.run([sys.executable, "-c", program], env=flags, capture_output=True, text=True).stdout == "3.0\n"


def test_nothing_is_set_beside_the_users_choice_or_an_accelerator(flags):
    flags.setattr(cache, "_PLUGINS", ("jax",))
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "")
    try:
        cache.set_cpu_flags()
    finally:
        jax.config.update("jax_platforms", before)
    assert os.environ["XLA_FLAGS"] == "--some=1"
    for chosen in (f"{SCHEDULER}=CPU_SCHEDULER_TYPE_DEFAULT {CONVOLUTIONS}=LIBRARY_FUSION_TYPE_DOT", "a_file_of_flags"):
        flags.setenv("XLA_FLAGS", chosen)
        cache.set_cpu_flags()
        assert os.environ["XLA_FLAGS"] == chosen


def test_the_cache_goes_where_it_is_told_or_is_off(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        cache.use_compilation_cache("")
        assert jax.config.jax_compilation_cache_dir == before
        cache.use_compilation_cache(str(tmp_path))
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        cache.use_compilation_cache(None)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "pds_jax" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


@pytest.fixture
def folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def is_number(value):
    return isinstance(value, int)


def test_a_value_is_computed_once_a_key(folder):
    assert cache.remembered("n", "a", lambda: 1, is_number) == 1
    assert cache.remembered("n", "a", lambda: 2, is_number) == 1
    assert cache.remembered("n", "b", lambda: 3, is_number) == 3
    assert cache.remembered("m", "a", lambda: 4, is_number) == 4
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("text", ["", "{", '"no number"', "[[[", "\x00"])
def test_a_damaged_file_is_not_believed_but_mended(folder, text):
    cache.remembered("n", "a", lambda: 1, is_number)
    next(folder.iterdir()).write_text(text)
    assert cache.remembered("n", "a", lambda: 2, is_number) == 2
    assert cache.remembered("n", "a", lambda: 3, is_number) == 2


def test_another_value_in_a_file_is_not_believed(folder):
    cache.remembered("n", "a", lambda: 1, is_number)
    path = next(folder.iterdir())
    path.write_text(path.read_text().replace('"value": 1', '"value": 7'))
    assert cache.remembered("n", "a", lambda: 2, is_number) == 2


def test_no_folder_and_one_that_cannot_be_written_only_cost_time(folder, monkeypatch):
    monkeypatch.chdir(folder)
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
    assert [cache.remembered("n", "a", lambda n=n: n, is_number) for n in (1, 2)] == [1, 2]
    assert not list(folder.iterdir())
    jax.config.update("jax_compilation_cache_dir", str(folder / "file" / "below"))
    (folder / "file").write_text("")
    assert [cache.remembered("n", "a", lambda n=n: n, is_number) for n in (1, 2)] == [1, 2]
    jax.config.update("jax_compilation_cache_dir", None)
    assert [cache.remembered("n", "a", lambda n=n: n, is_number) for n in (1, 2)] == [1, 2]


def test_another_code_has_another_digest(tmp_path):
    (tmp_path / "a.py").write_text("1")
    before = cache.code_digest(tmp_path)
    assert cache.code_digest(tmp_path) == before
    (tmp_path / "a.py").write_text("2")
    assert cache.code_digest(tmp_path) != before
