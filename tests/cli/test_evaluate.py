"""--mode=eval on two snapshots of a tiny training."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from pds_jax import assembly, checkpoints, statistics
from pds_jax.cli import evaluate as evaluation_job
from pds_jax.cli import run_lib
from pds_jax.cli.options import RunOptions, SamplerOptions
from pds_jax.data import datasets
from pds_jax.data.datasets import digits
from pds_jax.io import files, images
from pds_jax.metrics import evaluation
from pds_jax.metrics.extractors import get_extractor
from pds_jax.metrics.frechet import frechet_distance_from_features
from pds_jax.metrics.image_sets import open_images
from pds_jax.metrics.reference import Reference, save_reference
from pds_jax.models import init_model
from pds_jax.train_state import create_train_state, get_optimizer
from pds_jax.types import PdsError
from tests import tiny

PIXELS = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
FEW = SamplerOptions(speed_up=250.0, corrector="none")


def config(**eval_options):
    chosen = tiny.get_config()
    chosen.eval.update(
        begin_ckpt=1, end_ckpt=2, batch_size=4, num_samples=6, enable_loss=True, enable_bpd=False, enable_sampling=False
    )
    chosen.eval.update(**eval_options)
    return chosen


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Snapshots at steps 8 (number 1) and 12 (number 2) with random weights, and the statistics of the digits."""
    workdir = tmp_path_factory.mktemp("training")
    chosen = config()
    shapes = jax.eval_shape(lambda: init_model(jax.random.key(0), chosen))
    states = checkpoints.TrainingFolder(workdir / "checkpoints")
    for step in (8, 12):
        rng = np.random.default_rng(step)
        params = jax.tree.map(lambda leaf, rng=rng: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
        states.save(step, create_train_state(params, get_optimizer(chosen)))
    states.close()
    files.write_json(workdir / "config.json", evaluation_job.plain(chosen.to_dict()))
    statistics.compute_statistics([digits("train")[0]]).save(workdir / "statistics.npz")
    return workdir


def options(workdir, chosen, **words):
    given = {"sampler": FEW} if chosen is not None and chosen.eval.enable_sampling else {}
    given |= {"eval_images": 6} if chosen is not None and (chosen.eval.enable_loss or chosen.eval.enable_bpd) else {}
    return RunOptions("eval", workdir, config=chosen, **{**given, **words})


def evaluate(workdir, chosen, **words):
    return evaluation_job.evaluate(options(workdir, chosen, **words))


def test_loss_of_a_range_of_checkpoints_by_the_command(training, capsys):
    """The command line's own function."""
    run_lib.run(options(training, config(), eval_folder="loss"))
    assert "| checkpoint | loss |" in capsys.readouterr().out
    rows = json.loads((training / "loss" / "results.json").read_text())["rows"]
    assert [row["checkpoint"] for row in rows] == ["1", "2"] and rows[0]["loss"] != rows[1]["loss"]
    assert all(np.isfinite(row["loss"]) and row["loss_std_err"] > 0 and row["loss_images"] == 6 for row in rows)


def test_the_loss_does_not_depend_on_batches_and_devices(training):
    """Batches of 4 and 2 on four devices, and of 6."""
    rows = json.loads((training / "loss" / "results.json").read_text())["rows"]
    other = evaluate(training, config(batch_size=6, end_ckpt=1), eval_folder="sixes")
    assert other[0]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-5)


@pytest.fixture(scope="module")
def judged(training):
    return evaluate(training, config(enable_loss=False, enable_sampling=True), eval_folder="judged")


def test_samples_are_made_and_judged_by_the_data_sets_own_features(training, judged):
    folder = training / "judged"
    for row in judged:
        samples = open_images(folder / f"ckpt_{row['checkpoint']}" / "samples")
        features = get_extractor("digits")
        real = np.asarray(features((digits("train")[0] * 255).astype(np.uint8)))
        expected = frechet_distance_from_features(np.asarray(features(samples.images(range(6)))), real)
        assert row["fid"] == pytest.approx(expected, rel=1e-3)
        assert (row["n"], row["reference_n"], row["nfe"], row["alpha"]) == (6, 1500, 4, "inf")
        assert {"kid", "is"} <= set(row) and "fewer than 50000" in " ".join(row["notes"])
    text = (folder / "results.md").read_text()
    assert "| checkpoint | FID (digits features) | KID | IS | images | NFE |" in text
    assert "Note: 6 images, fewer than 50000" in text


def test_a_second_command_computes_nothing_and_a_lost_image_only_itself(training, judged, monkeypatch):
    chosen = config(enable_loss=False, enable_sampling=True)
    folder = training / "judged"
    before = (folder / "reference.npz").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", None)
        patch.setattr(evaluation_job.sampling_job, "draw_to_folder", None)
        assert evaluate(training, chosen, eval_folder="judged") == judged
    images.seed_path(folder / "ckpt_2" / "samples", 3).unlink()
    kept = images.seed_path(folder / "ckpt_2" / "samples", 2).stat().st_mtime_ns
    (folder / "ckpt_2" / "figures.json").unlink()
    again = evaluate(training, chosen, eval_folder="judged")
    assert again[1]["fid"] == pytest.approx(judged[1]["fid"], rel=1e-6) and again[0] == judged[0]
    assert images.seed_path(folder / "ckpt_2" / "samples", 2).stat().st_mtime_ns == kept
    assert (folder / "reference.npz").stat().st_mtime_ns == before


def test_another_setting_in_the_same_folder_is_refused(training, judged):
    chosen = config(enable_loss=False, enable_sampling=True, num_samples=8)
    with pytest.raises(PdsError, match="figures.json is the result of another setting .samples was 6, is 8"):
        evaluate(training, chosen, eval_folder="judged")


def test_the_noise_of_another_seed_is_another_setting(training):
    evaluate(training, config(end_ckpt=1), eval_folder="seed")
    chosen = config(end_ckpt=1)
    chosen.seed += 1
    with pytest.raises(PdsError, match="loss.json is the result of another setting"):
        evaluate(training, chosen, eval_folder="seed")


def test_bits_per_dimension_need_a_score_without_labels(training, tmp_path):
    evaluating = job(training, tmp_path, label_dim=10)
    evaluating.settings.enable_bpd = True
    with pytest.raises(PdsError, match="bits/dim need a score without labels"):
        evaluating.check()


def test_bits_per_dimension_are_resumed_batch_by_batch(training):
    chosen = config(enable_loss=False, enable_bpd=True, end_ckpt=1)
    folder = training / "eval" / "ckpt_1"
    first = evaluate(training, chosen)
    assert np.isfinite(first[0]["bpd"]) and len(first[0]["bpd_per_repeat"]) == 5 and first[0]["bpd_nfe"] > 20
    parts = sorted(path.name for path in (folder / "bpd").iterdir())
    assert len(parts) == 10
    (folder / "bpd.json").unlink()
    (folder / "bpd" / "2-4.npz").write_bytes(b"torn")
    untouched = (folder / "bpd" / "2-0.npz").stat().st_mtime_ns
    assert evaluate(training, chosen)[0]["bpd"] == pytest.approx(first[0]["bpd"], rel=1e-6)
    assert (folder / "bpd" / "2-0.npz").stat().st_mtime_ns == untouched


@pytest.mark.parametrize(
    "eval_options, words, match",
    [
        ({"begin_ckpt": 3, "end_ckpt": 9}, {}, r"there: 1 \(step 8\), 2 \(step 12\)"),
        ({"enable_loss": False}, {}, "nothing to evaluate"),
        ({"bpd_dataset": "dev", "enable_bpd": True}, {}, "bpd_dataset='dev'"),
        ({"batch_size": 0}, {}, "batch_size=0"),
        ({}, {"eval_images": 0}, "--eval_images=0"),
        ({}, {"sampler": SamplerOptions(nfe=40)}, "--nfe has no effect here: config.eval.enable_sampling is off"),
        ({}, {"sampler": SamplerOptions(r=0.2)}, "--radius has no effect here"),
        ({}, {"batch_size": 8}, "--batch_size has no effect here"),
        ({"enable_sampling": True}, {"batch_size": 0}, "--batch_size=0: use at least 1"),
        ({"enable_sampling": True, "enable_loss": False}, {"eval_images": 4}, "--eval_images has no effect here"),
        ({}, {"metrics": ("fid",)}, "--metrics has no effect here: config.eval.enable_sampling is off"),
        ({"enable_sampling": True}, {"metrics": ("fid", "fvd")}, r"unknown metric 'fvd'; known: fid,"),
        ({"enable_sampling": True}, {"ref": "missing.npz"}, "missing.npz"),
        ({"enable_sampling": True}, {"inception_weights": "w.pt"}, "the extractor is 'digits'; leave it out"),
        ({"enable_sampling": True, "num_samples": 1}, {}, "num_samples=1 at least 2"),
        ({"enable_sampling": True}, {"extractor": "patches"}, "takes 3 channels"),
    ],
)
def test_what_cannot_be_done_is_refused_first(training, eval_options, words, match):
    with pytest.raises(PdsError, match=match):
        evaluate(training, config(**eval_options), eval_folder="refused", **words)
    assert not (training / "refused").exists()


@pytest.mark.parametrize(
    "size, extractor, match",
    [
        (8, "pixels", "made with extractor='pixels', this run has extractor='digits'"),
        (4, "digits", r"of images \(H, W, C\) = \(4, 4, 1\), these are \(8, 8, 1\)"),
    ],
)
def test_a_reference_of_other_features_or_images_is_refused(training, tmp_path, size, extractor, match):
    identity = get_extractor(extractor).identity
    provenance = {"extractor": identity, "image_shape": [size, size, 1]}
    save_reference(tmp_path / "ref.npz", Reference(np.zeros(64), np.eye(64), 9, provenance))
    with pytest.raises(PdsError, match=match):
        evaluate(training, config(enable_sampling=True), eval_folder="refused", ref=str(tmp_path / "ref.npz"))
    assert not (training / "refused").exists()


def test_without_the_inception_weights_the_error_says_where_they_are(training, monkeypatch, tmp_path):
    monkeypatch.delenv("PDS_INCEPTION", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    chosen = config(enable_sampling=True)
    with pytest.raises(PdsError, match="download https://.*sha256 begins with 6726825d.*enable_sampling=False"):
        evaluate(training, chosen, eval_folder="refused", extractor="inception")
    assert not (training / "refused").exists()


def test_a_folder_without_a_training_is_refused(tmp_path):
    with pytest.raises(PdsError, match="holds no training.*--checkpoint"):
        evaluate(tmp_path, None)


def job(training, folder, **model):
    """An evaluation of samples alone, of a network whose configuration has other fields of model."""
    chosen = config(enable_loss=False, enable_sampling=True)
    trained = assembly.load(str(training / "checkpoints" / "8"), chosen)
    changed = trained.config.copy_and_resolve_references()
    with changed.unlocked():
        changed.model.update(model)
    words = options(training, chosen)
    return evaluation_job.Job(dataclasses.replace(trained, config=changed), folder, "ckpt_1", words)


@pytest.mark.parametrize("version", ["now", "earlier"])
def test_the_statistics_of_other_training_images_are_refused(training, tmp_path, version):
    sources = [datasets.ArraySource("mine", images) for images in (PIXELS, PIXELS[:, ::-1], PIXELS[:5])]
    first, flipped, fewer = (evaluation_job.SourceImages(source, source.size) for source in sources)
    found, identity = get_extractor("digits"), first.identity if version == "now" else None
    provenance = {"extractor": found.identity, "image_shape": [8, 8, 1], "images": first.name, "data": identity}
    save_reference(tmp_path / "reference.npz", Reference(np.zeros(2), np.eye(2), 6, provenance))
    assert evaluation_job.stored_reference(first, found, tmp_path).count == 6
    with pytest.raises(PdsError, match="count was 6 there and is 5 now; choose another --eval_folder"):
        evaluation_job.stored_reference(fewer, found, tmp_path)
    if version == "now":
        with pytest.raises(PdsError, match="other training images: probe_sha256 was"):
            evaluation_job.stored_reference(flipped, found, tmp_path)
    with pytest.raises(PdsError, match="images was 'the data set mine' there and is 'the data set digits-train' now"):
        job(training, tmp_path).check()  # before any work


def test_figures_say_what_they_are_against_and_a_network_with_classes_gets_random_ones(training, tmp_path, monkeypatch):
    seen = {}

    def once(name, identity, compute):
        seen["figures"] = identity
        return compute()

    def made(*given, **words):
        seen.update(words)
        raise PdsError("far enough")

    evaluating = job(training, tmp_path, label_dim=10)
    evaluating.check()
    object.__setattr__(evaluating, "_once", once)
    monkeypatch.setattr(evaluation_job.sampling_job, "draw_to_folder", made)
    monkeypatch.setattr(evaluation_job, "training_reference", lambda *given, **words: object())
    with pytest.raises(PdsError, match="far enough"):
        evaluating.run()
    assert seen["labels"] == "random" and seen["identity"] == {"labels": "random"}
    assert seen["figures"]["labels"] == "random" and seen["figures"]["data"]["count"] == 1500


def test_the_loss_of_a_network_of_another_program_is_refused_first(training, tmp_path):
    evaluating = job(training, tmp_path)
    evaluating.settings.enable_loss = True
    other = dataclasses.replace(evaluating.trained, score_fn=lambda x, t: -x)
    with pytest.raises(PdsError, match="training loss of .* is not known; add --config.eval.enable_loss=false"):
        dataclasses.replace(evaluating, trained=other).check()
