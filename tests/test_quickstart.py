"""scripts/quickstart.py on the smallest model: what it leaves and what it prints."""

import json
import types

import pytest
from load_script import load

from pds_jax.types import PdsError


def run(monkeypatch, tmp_path, alpha):
    script = load("quickstart")
    values = {"_MODEL": "digits", "_NFES": ["6"], "_COUNT": 16, "_ALPHA": alpha, "_OUT": str(tmp_path)}
    for name, value in values.items():
        monkeypatch.setattr(script, name, types.SimpleNamespace(value=value))
    script.main(["quickstart.py"])


def test_it_writes_a_picture_and_a_table(monkeypatch, tmp_path, capsys):
    run(monkeypatch, tmp_path, "5")
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    printed, table = capsys.readouterr().out, (tmp_path / "table.md").read_text()
    rows = json.loads(printed.splitlines()[-1])["rows"]
    assert [row["nfe"] for row in rows] == [6, 6, 5, 6]
    assert "alpha 5" in rows[1]["sampler"] and "auto" in rows[2]["sampler"]
    assert table.strip() in printed


@pytest.mark.parametrize("alpha", ["x", "0.5"])
def test_a_bad_alpha_is_refused(monkeypatch, tmp_path, alpha):
    with pytest.raises(PdsError, match=f"alpha={alpha}: use a number above 1"):
        run(monkeypatch, tmp_path, alpha)
