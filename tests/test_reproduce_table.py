"""scripts/reproduce_table.py: the arithmetic of its tables, and every big table end to end on a stand-in."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from pds_jax import checkpoints, statistics
from pds_jax.models import init_model

ROOT = pathlib.Path(__file__).parent.parent


def load():
    spec = importlib.util.spec_from_file_location("reproduce_table", ROOT / "scripts" / "reproduce_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load()


@pytest.fixture
def given(monkeypatch):
    """Flags of the script as if given; the others at their defaults."""
    if not script.flags.FLAGS.is_parsed():
        script.flags.FLAGS.mark_as_parsed()

    def give(**values):
        for name, value in values.items():
            monkeypatch.setattr(script.flags.FLAGS[name], "value", value)
        return script.chosen()

    return give


def test_every_table_has_a_row_without_and_with_pds_at_each_number_of_iterations(given):
    for name in script.TABLES:
        table = given(table=name)
        rows = script.rows_of(table)
        assert len({row.key for row in rows}) == len(rows)
        for network in table.networks:
            for speed_up in table.speed_ups:
                alphas = {row.alpha for row in rows if (row.network, row.speed_up) == (network, speed_up)}
                assert math.inf in alphas and any(math.isfinite(alpha) for alpha in alphas)


def test_published_figures_stand_only_where_they_belong(given):
    table = given(table="cifar10")
    row = {"network": "ncsnpp", "alpha": "inf", "iterations": 1000}
    assert script.published(table, row) == "2.38, 9.83 (Song et al. 2021, table 3)"
    assert script.published(table, {**row, "network": "deep"}).startswith("2.20, 9.89")
    for other in ({"alpha": 5.0}, {"iterations": 200}):
        assert script.published(table, {**row, **other}) == ""
    assert script.published(given(table="photos_pc"), {**row, "network": "photos"}) == ""
    text = script.markdown(given(table="cifar10"), [{**row, "nfe": 2000, "snr": 0.16, "mean": {"fid": 3.0}}])
    assert "| ncsnpp | 1000 | 2000 | without |" in text and "1.99" in text and "the setting is not stated" in text


def test_a_diverging_row_says_so(given):
    rows = [
        {"network": "photos", "alpha": 2.0, "iterations": 5, "refused": "it diverges"},
        {"network": "photos", "alpha": "inf", "iterations": 5, "mean": {"fid": 3.0}, "minimum": {"fid": 2.0}},
    ]
    text = script.markdown(given(table="photos_pc"), rows)
    assert "| diverges |" in text and "alpha 2.0: it diverges" in text and "| 3 | 2 |" in text


def test_paths_belong_to_networks(given):
    table = given(table="lsun")
    assert script.by_network(["church=a.pth"], table, "checkpoint") == {"church": "a.pth"}
    assert script.by_network(["a.pth"], given(table="ffhq"), "checkpoint") == {"ncsnpp": "a.pth"}
    with pytest.raises(script.PdsError, match="write NETWORK=a.pth"):
        script.by_network(["a.pth"], table, "checkpoint")
    with pytest.raises(script.PdsError, match="no network 'chapel'"):
        script.by_network(["chapel=a.pth"], table, "checkpoint")


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("cifar10", "minutes"),
        ("cifar10", "prompts"),
        ("photos", "alphas"),
        ("photos", "clip"),
        ("coco", "snr"),
        ("digits_pc", "config_argument"),
    ],  # fmt: skip
)
def test_a_flag_that_a_table_does_not_use_is_refused(given, monkeypatch, table, name):
    given(table="cifar10")
    script.check_flags(table)
    monkeypatch.setattr(script.flags.FLAGS[name], "present", 1)
    with pytest.raises(script.PdsError, match=f"--{name} has no effect here: --table={table} takes --"):
        script.check_flags(table)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"option": ["snr=0.1"]}, "--option=snr=0.1: --snr decides it"),
        ({"option": ["alpha=3"]}, "--option=alpha=3: --alphas decides it"),
        ({"option": ["speed_up=3"]}, "--option=speed_up=3: --speed_ups decides it"),
        ({"option": ["kapa=3"]}, "unknown sampling option 'kapa'"),
        ({"option": ["corrector=none"], "snr": 0.1}, "snr has no effect here: there is no corrector"),
    ],
)
def test_an_option_that_the_rows_would_not_use_is_refused_before_anything_is_loaded(given, tmp_path, options, error):
    table = given(table="digits_pc", **options)
    for job in (lambda: script.dry_run(table), lambda: script.measure_all(table, tmp_path)):
        with pytest.raises(script.PdsError, match=error):
            job()


def test_a_dry_run_counts_the_evaluations_of_the_options(given):
    counts = [{row["NFE"] for row in script.dry_run(given(table="digits_pc", option=some))["rows"]}
              for some in ([], ["corrector=none"])]  # fmt: skip
    assert counts == [{40, 80, 160, 400}, {20, 40, 80, 200}]


@pytest.mark.parametrize("words", [["5", "many"], [""], ["0"], ["-2"], ["nan"]])
def test_lists_of_numbers_hold_numbers(words):
    assert script.numbers(["5", "20"], "alphas") == [5.0, 20.0] and script.numbers(None, "alphas") is None
    with pytest.raises(script.PdsError, match="--alphas=.*: use numbers above 0"):
        script.numbers(words, "alphas")


def test_a_strength_of_no_use_is_refused_before_any_row(given):
    with pytest.raises(script.PdsError, match="--alphas=0.5,5: use numbers above 1"):
        given(table="digits_pc", alphas=["0.5", "5"])


def test_an_argument_that_a_configuration_does_not_take_is_named(given):
    table = given(table="cifar10", config_argument="n_iter=2")
    with pytest.raises(script.PdsError, match="--config_argument=n_iter=2: .* names no field; near: n_iters"):
        script.rows_of(table)


def test_no_methods_are_refused(given, monkeypatch, tmp_path):
    given(table="cifar10", methods=[])
    monkeypatch.setattr(script.flags.FLAGS["table"], "value", "digits")
    with pytest.raises(script.PdsError, match="--methods=: use some of "):
        script.ablate(tmp_path)


def run(*words, ok=True):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "reproduce_table.py"), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if ok else done.stderr


@pytest.mark.slow
def test_without_weights_the_error_says_what_to_give_and_a_dry_run_needs_none(tmp_path):
    assert "--checkpoint=NETWORK=PATH for some of ['ncsnpp', 'deep']" in run(
        "--table=cifar10", f"--out={tmp_path}", "--extractor=pixels", ok=False
    )
    words = ("--table=celeba", "--dry_run", "--config_argument=runlocal", "--images=100", "--speed_ups=1,2")
    assert run(*words)["hours"] > 0


# Billions of multiply-adds of an evaluation; Peebles and Xie 2023 (DiT) give 1120 for ADM at 256 pixels.
@pytest.mark.parametrize(
    ("name", "network", "billions"),
    [
        ("ffhq64", "edm", 40),
        pytest.param("afhqv2", "edm", 40, marks=pytest.mark.slow),
        pytest.param("imagenet64", "adm", 105, marks=pytest.mark.slow),
        pytest.param("imagenet128", "adm", 300, marks=pytest.mark.slow),
        pytest.param("imagenet256", "adm", 1120, marks=pytest.mark.slow),
    ],
)
def test_a_dry_run_of_a_large_network_says_cost_and_memory(given, capsys, name, network, billions):
    found = script.dry_run(given(table=name, images=1000))
    rows = [row for row in found["rows"] if row["network"] == network]
    assert {row["NFE"] for row in rows} == {250, 100, 40, 20} and {row["alpha"] for row in rows} == {"none", 5.0}
    assert rows[0]["GFLOP an evaluation"] / 2 == pytest.approx(billions, rel=0.03)
    said = capsys.readouterr().out
    assert f"{network}: at most about" in said and "FID" in said and "64 images at once" in said


def stand_in(place, module):
    """Random weights of a configuration's runlocal form, and statistics of random images."""
    config = importlib.import_module(module).get_config("runlocal")
    rng, size = np.random.default_rng(0), config.data.image_size
    shapes = jax.eval_shape(lambda: init_model(jax.random.key(0), config))
    params = jax.tree.map(lambda leaf: (0.02 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    pixels = rng.random((64, size // 2, size // 2, 3)).repeat(2, axis=1).repeat(2, axis=2).astype(np.float32)
    checkpoints.save_model(place, params, config, statistics.compute_statistics([pixels]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "celeba", "lsun", "ffhq"])
def test_a_big_table_end_to_end_on_a_stand_in(name, tmp_path):
    """All networks of the table, tiny: sampled, judged against the training data, tabulated; a second run is silent."""
    table = script.TABLES[name]
    for network, facts in table.networks.items():
        stand_in(tmp_path / network, facts.config)
    given = ",".join(f"{network}={tmp_path / network}" for network in table.networks)
    words = (
        f"--table={name}", f"--checkpoint={given}", "--config_argument=runlocal", "--extractor=patches",
        "--images=8", "--ranges=2", "--speed_ups=1,4", "--alphas=20", f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    assert run(*words)["table"] == name
    record = json.loads((tmp_path / "out" / name / "table.json").read_text())
    assert len(record["rows"]) == 4 * len(table.networks)
    for row in record["rows"]:
        assert "refused" in row or (len(row["runs"]) == 2 and row["minimum"]["fid"] <= row["mean"]["fid"])
    assert sum("runs" in row for row in record["rows"]) >= 2 * len(table.networks)
    before = (tmp_path / "out" / name / "table.md").read_text()
    run(*words)
    assert (tmp_path / "out" / name / "table.md").read_text() == before


@pytest.mark.slow
def test_quick_runs_pc_on_photos_and_digits(tmp_path):
    for name in ("photos_pc", "digits_pc"):
        assert run(f"--table={name}", "--quick", f"--out={tmp_path}")["images"] == 16
        text = (tmp_path / "quick" / name / "table.md").read_text()
        assert "without" in text and "PDS, alpha 5" in text and "real images" in text
