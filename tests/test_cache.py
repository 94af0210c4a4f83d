import os

import jax
import jaxlib
import pytest

from pds_jax import cache


@pytest.fixture
def flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--some=1")
    monkeypatch.setattr(jaxlib, "__version__", "0.10.2")
    return monkeypatch


def test_the_scheduler_is_chosen_once_beside_the_users_flags(flags):
    cache.order_for_memory()
    cache.order_for_memory()
    assert os.environ["XLA_FLAGS"] == "--some=1 --xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"


def test_nothing_is_set_where_xla_might_not_know_the_flag(flags):
    flags.setattr(jaxlib, "__version__", "0.12.0")
    cache.order_for_memory()
    assert os.environ["XLA_FLAGS"] == "--some=1"


def test_nothing_is_set_beside_the_users_choice_or_an_accelerator(flags):
    flags.setattr(cache, "_PLUGINS", ("jax",))
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "")
    try:
        cache.order_for_memory()
    finally:
        jax.config.update("jax_platforms", before)
    assert os.environ["XLA_FLAGS"] == "--some=1"
    flags.setenv("XLA_FLAGS", "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_DEFAULT")
    cache.order_for_memory()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_DEFAULT"


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
