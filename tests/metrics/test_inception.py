import hashlib
import json

import numpy as np
import pytest

from pds_jax.metrics import inception
from pds_jax.metrics.inception import LAYERS, inception_features, load_weights, preprocess
from pds_jax.types import PdsError

# Relative L2 of float32 against the float64 network; the original in float32 reaches 1e-7 ... 2e-6.
TOLERANCE = {"64": 1e-6, "192": 1e-6, "768": 1e-5, "2048": 5e-5, "logits_unbiased": 5e-5, "logits": 5e-5}


@pytest.fixture(scope="module")
def params(weights_file):
    return load_weights(weights_file)


def relative(got, expected):
    return np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)


def test_features_of_images_of_three_sizes(params, archive):
    images = archive("inception_inputs.npz") | archive("inception_input_331.npz")
    groups = [inception_features(params, images[name], LAYERS) for name in sorted(images, key=len)]
    exact, original = archive("inception_features_f64.npz"), archive("inception_features.npz")
    for layer in LAYERS:
        got = np.concatenate([np.asarray(group[layer]) for group in groups])
        order = [0, 1, 2, 3, 4, 5, 6]
        assert got.shape[0] == len(order)
        for recorded in (exact, original):
            if layer in recorded:
                assert relative(got, recorded[layer][order]).max() < TOLERANCE[layer], layer


def test_pytorch_fids_preprocessing(params, archive):
    recorded = archive("inception_features_pytorch_fid.npz")
    got = inception_features(params, archive("inception_inputs.npz")["img_64x48"], LAYERS[:4], "half_pixel")
    for layer in LAYERS[:4]:
        assert relative(np.asarray(got[layer]), recorded[layer][4:6]).max() < TOLERANCE[layer], layer


def test_features_do_not_depend_on_the_batch(params, archive):
    images = archive("inception_inputs.npz")["img_32x32"]
    together = np.asarray(inception_features(params, images, ("192",))["192"])
    alone = np.concatenate([np.asarray(inception_features(params, image[None], ("192",))["192"]) for image in images])
    assert relative(alone, together).max() < 1e-6


def test_gray_is_rgb_with_equal_channels():
    gray = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 1)).astype(np.uint8)
    np.testing.assert_array_equal(preprocess(gray), preprocess(np.repeat(gray, 3, axis=-1)))
    with pytest.raises(PdsError, match=r"\(B, H, W, 3\) or \(B, H, W, 1\)"):
        preprocess(np.zeros((1, 4, 4, 4), np.uint8))
    with pytest.raises(PdsError, match="unknown resize rule 'area'; known: "):
        preprocess(gray, "area")


def test_every_kind_of_file_gives_the_same_weights(state_dict, params, weights_file, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch writes the .pth of this test")
    from safetensors.numpy import save_file

    save_file(state_dict, tmp_path / "weights.safetensors")
    torch.save({name: torch.from_numpy(value) for name, value in state_dict.items()}, tmp_path / "weights.pth")
    digest = inception.weights_digest(params)
    for name in ("weights.safetensors", "weights.pth"):
        assert inception.weights_digest(load_weights(tmp_path / name)) == digest


def test_checksum_in_the_name(weights_file, tmp_path):
    data = weights_file.read_bytes()[:1000]
    wrong = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    wrong.write_bytes(data)
    with pytest.raises(PdsError, match="its name promises 6726825d.*damaged.*https://github.com"):
        load_weights(wrong)
    right = tmp_path / f"x-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    right.write_bytes(data)
    inception._check_name_hash(right)


def test_missing_file_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv(inception.ENVIRONMENT, raising=False)
    with pytest.raises(PdsError, match="download https://github.com/mseitzer/pytorch-fid/.*6726825d"):
        load_weights()
    with pytest.raises(PdsError, match="nowhere.npz"):
        load_weights(tmp_path / "nowhere.npz")
    there = tmp_path / "hub" / "checkpoints" / inception.FILE_NAME
    there.parent.mkdir(parents=True)
    there.write_bytes(b"x")
    assert inception.find_weights() == there
    monkeypatch.setenv(inception.ENVIRONMENT, str(tmp_path / "mine.npz"))
    with pytest.raises(PdsError, match="mine.npz"):
        inception.find_weights()


def test_wrong_contents_are_named(state_dict, tmp_path):
    with pytest.raises(PdsError, match="1 tensors are missing.*fc.bias"):
        inception.from_state_dict({k: v for k, v in state_dict.items() if k != "fc.bias"})
    with pytest.raises(PdsError, match="1 are unknown.*AuxLogits"):
        inception.from_state_dict(state_dict | {"AuxLogits.fc.weight": np.zeros(1)})
    with pytest.raises(PdsError, match=r"fc.weight has shape \(1000, 2048\), expected \(1008, 2048\)"):
        inception.from_state_dict(state_dict | {"fc.weight": state_dict["fc.weight"][:1000]})
    with pytest.raises(PdsError, match="fc.bias is not finite"):
        inception.from_state_dict(state_dict | {"fc.bias": np.full(1008, np.nan)})
    torn = tmp_path / "torn.npz"
    torn.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(PdsError, match="torn.npz is not a whole"):
        load_weights(torn)
    torn = torn.rename(tmp_path / "torn.safetensors")
    with pytest.raises(PdsError, match="torn.safetensors is not a whole"):
        load_weights(torn)
    other = tmp_path / "weights.onnx"
    other.write_bytes(b"x")
    with pytest.raises(PdsError, match="as .pth, .npz or .safetensors"):
        load_weights(other)


def test_names_are_those_of_the_ported_file(folder):
    names = json.loads((folder / "inception_names.json").read_text())
    expected = {name: tuple(shape) for name, shape in names.items() if not name.endswith("num_batches_tracked")}
    assert inception._expected_shapes() == expected


def test_official_weights_when_the_user_has_them():
    try:
        path = inception.find_weights()
    except PdsError:
        pytest.skip("the official Inception weights are not on this machine")
    assert load_weights(path)["fc"]["kernel"].shape == (2048, 1008)
