"""``pds_jax doctor``."""

import pytest

from pds_jax import sampling
from pds_jax.cli import doctor


def test_it_says_what_is_there_and_passes(capsys):
    assert doctor.doctor()
    said = capsys.readouterr().out
    models = "shipped models     fashion, landscapes, photos, digits, fashion_small"
    for word in ("jax  ", "platform           cpu", "precision", "cache", models):
        assert word in said
    assert "self-test          passed in" in said.splitlines()[-1]


def test_a_sampler_of_another_law_fails_it(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_STD", 0.25)
    monkeypatch.setattr(doctor, "_score", lambda sde, x, t: 4 * (0.5 - x) / (sde.std(t) ** 2)[:, None, None, None])
    assert not doctor.doctor()
    assert "FAILED" in capsys.readouterr().out


def test_an_error_below_fails_it_in_one_line(capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no device")

    monkeypatch.setattr(sampling, "get_pc_sampler", broken)
    assert not doctor.doctor()
    assert capsys.readouterr().out.splitlines()[-1] == "self-test          FAILED: RuntimeError: no device"


@pytest.mark.parametrize("folder, wanted", [(None, "off"), ("", "off"), ("gs://bucket/x", "gs://bucket/x")])
def test_where_programs_are_kept(folder, wanted):
    assert doctor._cache(folder).startswith(wanted)


@pytest.mark.parametrize(
    "kernel, tunables, wanted",
    [
        ("always [madvise] never", "", "off; CPUs"),
        ("always [madvise] never", "glibc.malloc.hugetlb=1", "on"),
        ("[always] madvise never", "", "on"),
        ("always madvise [never]", "glibc.malloc.hugetlb=1", "off in the kernel"),
    ],
)
def test_whether_memory_is_in_huge_pages(tmp_path, monkeypatch, kernel, tunables, wanted):
    setting = tmp_path / "enabled"
    assert doctor._huge_pages(setting) == "not on this system"
    setting.write_text(kernel)
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    assert doctor._huge_pages(setting).startswith(wanted)
