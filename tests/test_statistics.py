"""Statistics against their definition, batching, precision, the recorded masks, files and bad images."""

import dataclasses
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import statistics as st
from pds_jax.types import PdsError

PDS = "torch/pds"


def random_images(shape=(7, 6, 3), count=37, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def batches(images, size):
    return (images[k : k + size] for k in range(0, len(images), size))


def assert_same(a, b):
    for name in ("mean", "power", "r_f", "r_a"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.count == b.count and a.provenance == b.provenance


@pytest.fixture(scope="module")
def stats():
    return st.compute_statistics([random_images()])


@pytest.mark.parametrize("shape", [(7, 6, 3), (8, 9, 1), (1, 1, 2), (5, 12, 4)])
def test_definition(shape):
    images = random_images(shape)
    result = st.compute_statistics(batches(images, 10))
    x = images.astype(np.float64) / 255
    spectrum = np.fft.fft2(x, axes=(1, 2))
    power = np.mean(np.abs(spectrum - spectrum.mean(0)) ** 2, axis=0) / (shape[0] * shape[1])
    np.testing.assert_allclose(result.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(result.r_a, (x**2).mean(0), rtol=1e-6)
    np.testing.assert_allclose(result.r_f, np.log1p(np.mean(np.abs(spectrum) ** 2, axis=0)), rtol=1e-6)
    np.testing.assert_allclose(result.power, power[:, : shape[1] // 2 + 1], rtol=1e-4)
    np.testing.assert_allclose(st.full_plane(result.power, shape[1]), power, rtol=1e-4)
    assert result.shape == shape and result.count == 37
    assert result.provenance["shape"] == list(shape)


def test_recorded_masks(golden, tmp_path):
    result = st.compute_statistics(batches(np.load(golden / PDS / "mask_crops.npz")["crops"], 64))
    paths = result.to_masks(tmp_path)
    for path, name in zip(paths, ("freq_mask.npy", "space_mask.npy"), strict=True):
        assert path.name == name
        np.testing.assert_allclose(np.load(path), np.load(golden / PDS / name), atol=2e-6)


def test_batching_changes_nothing(stats):
    images = random_images()
    for size in (1, 5, 37, 100):
        assert_same(st.compute_statistics(batches(images, size)), stats)
    ragged = (images[a:b] for a, b in ((0, 3), (3, 3), (3, 30), (30, 37)))
    assert_same(st.compute_statistics(ragged), stats)


def test_blocks_change_only_rounding(stats):
    result = st.compute_statistics([random_images()], block=8)
    for name in ("mean", "r_f", "r_a"):
        np.testing.assert_allclose(getattr(result, name), getattr(stats, name), rtol=1e-6)
    np.testing.assert_allclose(result.power, stats.power, rtol=1e-4)
    assert result.provenance == stats.provenance


def test_bytes_and_floats_are_the_same_images(stats):
    for dtype in (np.float32, np.float64):
        floats = random_images().astype(dtype) / dtype(255)
        assert_same(st.compute_statistics(batches(floats, 9)), stats)


def test_limit(stats):
    endless = (random_images(count=10, seed=k) for k in range(10**9))
    first = np.concatenate([random_images(count=10, seed=k) for k in range(3)])[:25]
    assert_same(st.compute_statistics(endless, limit=25), st.compute_statistics([first]))


def test_memory_is_constant_and_one_program_serves():
    st._accumulate.clear_cache()
    sizes = []

    def spy(images, weights):
        sizes.append(images.shape[0])
        return st._accumulate(images, weights)

    st.compute_statistics(batches(random_images((4, 4, 1), count=70), 9), block=16, sums_fn=spy)
    assert sizes == [16] * 5
    assert st._accumulate._cache_size() == 1


def test_white_noise_has_power_one():
    noise = 0.05 * np.random.default_rng(0).standard_normal((4000, 8, 6, 1)).astype(np.float32) + np.float32(0.5)
    power = st.compute_statistics([noise]).power / 0.05**2
    assert power.mean() == pytest.approx(1, abs=0.02)
    assert np.abs(power - 1).max() < 0.15


def test_precision_over_many_blocks():
    """Float32 sums of one number 50 000 times would drift; the float64 totals do not."""
    image = random_images(count=1)
    many = st.compute_statistics(np.repeat(image, 500, axis=0) for _ in range(100))
    exact = image[0].astype(np.float64) / 255
    assert many.count == 50_000
    np.testing.assert_allclose(many.mean, exact, rtol=1e-6)
    np.testing.assert_allclose(many.r_a, exact**2, rtol=1e-6)
    total = np.abs(np.fft.rfft2(exact, axes=(0, 1))) ** 2 / 42
    assert np.all(many.power > 0) and np.all(many.power <= 3e-6 * total + 1e-6)


def test_devices_add_their_sums(stats):
    devices = jax.local_device_count()
    summed = jax.pmap(lambda x, w: jax.lax.psum(st.accumulate(x, w), "devices"), axis_name="devices")

    def on_all(images, weights):
        sums = summed(images.reshape(devices, -1, *images.shape[1:]), weights.reshape(devices, -1))
        return jax.tree.map(lambda leaf: leaf[0], sums)

    result = st.compute_statistics([random_images()], block=5 * devices, sums_fn=on_all)
    for name in ("mean", "r_f", "r_a"):
        np.testing.assert_allclose(getattr(result, name), getattr(stats, name), rtol=1e-6)
    assert result.count == stats.count


def test_padding_has_no_weight():
    images = random_images(count=6).astype(np.float32) / 255
    padded = np.concatenate([images, np.ones((2, *images.shape[1:]), np.float32)])
    weights = np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32)
    a, b = st.accumulate(jnp.asarray(padded), jnp.asarray(weights)), st.accumulate(images, weights[:6])
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-6), a, b)


def test_model_range(stats):
    mean, power = stats.to_range(False)
    assert mean is stats.mean and power is stats.power
    centered = 2 * (random_images().astype(np.float64) / 255) - 1
    spectrum = np.fft.rfft2(centered, axes=(1, 2))
    mean, power = stats.to_range(True)
    np.testing.assert_allclose(mean, centered.mean(0), atol=1e-6)
    np.testing.assert_allclose(power, np.mean(np.abs(spectrum - spectrum.mean(0)) ** 2, axis=0) / 42, rtol=1e-4)


def test_provenance(stats):
    p = stats.provenance
    assert (p["count"], p["channel_order"], p["data_range"]) == (37, "RGB", [0.0, 1.0])
    assert len(p["images_sha256"]) == 64 and p["package_version"] and "DFT" in p["fft"] and "r_f" in p["recipe"]
    gray = st.compute_statistics([random_images((4, 4, 1))]).provenance
    assert gray["channel_order"] == "gray" and gray["images_sha256"] != p["images_sha256"]
    assert st.compute_statistics([random_images()], channel_order="BGR").provenance["channel_order"] == "BGR"


# ---- sigma_max ----


@pytest.mark.parametrize("block", [4, 16, 64])
def test_sigma_max_is_the_largest_distance(block):
    images = random_images((5, 4, 3), count=41)
    x = images.reshape(41, -1).astype(np.float64) / 255
    exact = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1)).max()
    assert st.estimate_sigma_max(images, block=block) == pytest.approx(exact, rel=1e-6)
    assert st.estimate_sigma_max(batches(images, 7), block=block) == pytest.approx(exact, rel=1e-6)
    assert st.estimate_sigma_max(images.astype(np.float32) / 255, limit=None) == pytest.approx(exact, rel=1e-6)


def test_sigma_max_of_a_subset():
    images = random_images((5, 4, 3), count=41)
    spread = images[np.linspace(0, 40, 10).round().astype(int)]
    assert st.estimate_sigma_max(images, limit=10) == st.estimate_sigma_max(spread)
    assert st.estimate_sigma_max(batches(images, 8), limit=10) == st.estimate_sigma_max(images[:10])
    with pytest.raises(PdsError, match="at least two, got 1"):
        st.estimate_sigma_max(images[:1])
    with pytest.raises(PdsError, match="at least two, got 0"):
        st.estimate_sigma_max([])


# ---- files ----


def test_save_and_load(stats, tmp_path):
    path = tmp_path / "new" / "statistics.npz"
    stats.save(path)
    assert_same(st.load(path), stats)
    assert [p.name for p in path.parent.iterdir()] == ["statistics.npz"]


def test_save_where_nothing_can_be_written(stats, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PdsError, match="cannot write"):
        stats.save(tmp_path / "file" / "statistics.npz")


def test_damaged_files(stats, tmp_path):
    path = tmp_path / "statistics.npz"
    stats.save(path)
    data = path.read_bytes()
    for name, content in {"empty": b"", "half": data[: len(data) // 2], "tail": data[:-10], "text": b"no zip"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PdsError, match=rf"{name}.*not a whole \.npz"):
            st.load(tmp_path / name)
    with pytest.raises(PdsError, match="cannot read .*missing"):
        st.load(tmp_path / "missing")
    with pytest.raises(PdsError, match="cannot read"):
        st.load(tmp_path)


def test_every_flipped_byte_is_noticed_or_harmless(stats, tmp_path):
    path = tmp_path / "statistics.npz"
    stats.save(path)
    data = path.read_bytes()
    noticed = 0
    positions = np.random.default_rng(0).choice(len(data), 200, replace=False)
    for position in positions:
        flipped = bytearray(data)
        flipped[position] ^= 0xFF
        path.write_bytes(flipped)
        try:
            assert_same(st.load(path), stats)
        except PdsError:
            noticed += 1
    assert noticed > 150  # the rest hits zip fields that carry no data


def rewrite(path, source, change):
    """Save a changed copy of a statistics file: change(arrays, record)."""
    with np.load(source) as file:
        arrays = dict(file)
    record = json.loads(str(arrays.pop("provenance")))
    change(arrays, record)
    np.savez(path, provenance=np.array(json.dumps(record)), **arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, r: r.update(format="other/1"), "not a statistics file of pds_jax"),
        (lambda a, r: r.pop("shape"), "lacks a valid shape"),
        (lambda a, r: r.update(count=0), "image count 0"),
        (lambda a, r: a.pop("r_f"), r"holds the arrays \['mean', 'power', 'r_a'\]"),
        (lambda a, r: a.update(r_f=a["r_f"][:-1]), r"r_f is float32 \(6, 6, 3\), expected float32 \(7, 6, 3\)"),
        (lambda a, r: a.update(mean=a["mean"].astype(np.int32)), "mean is int32"),
        (lambda a, r: a["power"].__setitem__(0, -1), "power holds negative"),
        (lambda a, r: a["mean"].__setitem__(0, np.nan), "mean holds negative or non-finite"),
        (lambda a, r: a["mean"].__setitem__(0, 0.25), "do not match their recorded hash"),
    ],
)
def test_altered_files(stats, tmp_path, change, message):
    stats.save(tmp_path / "good.npz")
    rewrite(tmp_path / "bad.npz", tmp_path / "good.npz", change)
    with pytest.raises(PdsError, match=rf"bad\.npz.*{message}"):
        st.load(tmp_path / "bad.npz")


def test_other_programs_files_and_pickles(tmp_path):
    np.savez(tmp_path / "fid.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(PdsError, match="not a statistics file of pds_jax"):
        st.load(tmp_path / "fid.npz")

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "bomb.npz", mean=np.array([Bomb()], dtype=object))
    with pytest.raises(PdsError, match="pickled"):
        st.load(tmp_path / "bomb.npz")
    assert not (tmp_path / "ran").exists()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(PdsError, match=r"readme\.txt.*not a \.npy array"):
        st.load(tmp_path / "other.zip")


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path):
    np.save(tmp_path / "mean.npy", np.zeros(3, np.float32))
    data = (tmp_path / "mean.npy").read_bytes().replace(b"(3,), }          ", b"(99999999999,), }")
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("mean.npy", data)
    with pytest.raises(PdsError, match="huge.* 12 bytes of data, its header says 399999999996"):
        st.load(tmp_path / "huge.npz")


def test_wrong_shape_names_both(stats):
    stats.check_shape((7, 6, 3))
    with pytest.raises(PdsError, match=r"\(7, 6, 3\).*\(32, 32, 3\)"):
        stats.check_shape((32, 32, 3))


# ---- bad images ----


def broken(value):
    images = random_images().astype(np.float32) / 255
    images[11, 2, 3, 1] = value
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no image was given"),
        ([np.zeros((0, 4, 4, 3), np.uint8)], "no image was given"),
        ([random_images(), random_images((8, 8, 3))], r"image 37 has \(H, W, C\) = \(8, 8, 3\), .* \(7, 6, 3\)"),
        ([[np.zeros((4, 4, 3)), np.zeros((5, 4, 3))]], "images 0 and on differ in size"),
        ([np.zeros((4, 4, 3), np.uint8)], r"\(B, H, W, C\), got shape \(4, 4, 3\)"),
        ([random_images().astype(np.int64)], "dtype int64"),
        ([random_images().astype(np.float32)], r"image 0 has values in \[.*divide"),
        ([broken(np.nan)], "image 11 has values in .*nan"),
        ([broken(-0.5)], "image 11 has values in .*-0.5"),
        ([random_images(), broken(1.5)], "image 48 has values in .*1.5"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(PdsError, match=message):
        st.compute_statistics(iter(images))


def test_bad_limit():
    with pytest.raises(PdsError, match="limit=0"):
        st.compute_statistics([random_images()], limit=0)


def test_cross_spectra_are_kept_and_older_files_do_without(tmp_path):
    """S_ij = Re mean F(x_i − μ_i) conj F(x_j − μ_j) / (H W) for channels i < j; four times that in [-1, 1]."""
    images = np.random.default_rng(0).uniform(size=(30, 6, 5, 3)).astype(np.float32)
    images[..., 1] = (images[..., 0] + images[..., 1]) / 2
    made = st.compute_statistics([images])
    modes = np.fft.rfft2(images - images.mean(axis=0), axes=(1, 2))
    for number, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        expected = np.mean((modes[..., i] * modes[..., j].conj()).real, axis=0) / 30
        np.testing.assert_allclose(made.cross[..., number], expected, atol=2e-6)
    made.save(tmp_path / "new.npz")
    found = st.load(tmp_path / "new.npz")
    np.testing.assert_array_equal(found.cross, made.cross)
    np.testing.assert_array_equal(found.moments(True)[2], 4 * made.cross)
    dataclasses.replace(made, cross=None).save(tmp_path / "old.npz")
    assert st.load(tmp_path / "old.npz").cross is None
    assert len(st.load(tmp_path / "old.npz").moments(False)) == 2
    assert st.compute_statistics([images[..., :1]]).cross is None
