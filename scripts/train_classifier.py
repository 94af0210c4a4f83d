"""Train the small classifier whose features and classes judge samples of a shipped model.

python scripts/train_classifier.py --data=digits --out=checkpoints/digits_classifier
python scripts/train_classifier.py --data=digits --noise_conditional --steps=4000 \
    --out=checkpoints/digits_classifier_noisy
python scripts/train_classifier.py --data=fashion --out=checkpoints/fashion_classifier
python scripts/train_classifier.py --data=landscapes --out=checkpoints/landscapes_classifier

Beside a classifier of clean images it writes reference.npz, the moments of real images that samples are judged by;
--reference_only makes that file again for the classifier that lies in --out.

The last line on stdout is JSON: test_accuracy, parameters, seconds.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pds_jax import checkpoints
from pds_jax.bench import references
from pds_jax.cli import scripts
from pds_jax.cli.failures import one_line_errors
from pds_jax.data import arrays, datasets, fashion_mnist, photographs
from pds_jax.metrics import classifier_features
from pds_jax.models.classifier import Classifier

_TEST_BATCH = 1000
_CROPS = {"train": 10000, "test": 2500}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained on a data set.

    Attributes:
      load: split -> images (n, H, W, C), uint8 or in [0, 1], and labels (n,).
      model: the network's options.
      steps: by default.
      batch_size: by default.
      sigma: least and largest noise of the noise-conditional form.
      flip: whether images may be mirrored.
    """

    load: Callable[[str], tuple[np.ndarray, np.ndarray]]
    model: dict[str, Any]
    steps: int
    batch_size: int
    sigma: tuple[float, float]
    flip: bool = False


RECIPES = {
    "digits": Recipe(datasets.digits, {}, steps=3000, batch_size=64, sigma=(0.01, 4.8)),
    "fashion": Recipe(
        fashion_mnist.fashion,
        {"widths": (32, 64, 128, 128), "pools": (True, True, True, False), "features": 64, "normalised": True},
        steps=3500,
        batch_size=128,
        sigma=(0.01, 20.9),
        flip=True,
    ),
    # Which photograph a crop is from; flipped by the data set itself.
    "landscapes": Recipe(
        lambda split: photographs.labelled_landscapes(split, _CROPS[split]),
        {"widths": (16, 32, 64, 128), "pools": (True,) * 4, "features": 64, "classes": 28, "normalised": True},
        steps=1500,
        batch_size=64,
        sigma=(0.01, 103.0),
    ),
}


def draw_batch(
    images: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    size: int,
    levels: tuple[float, float] | None,
    flip: bool,
) -> tuple:
    """A batch, shifted by up to a pixel (clean form), or noised at a log-uniform level (noise-conditional form)."""
    chosen = rng.integers(0, len(images), size)
    batch = arrays.to_unit(images[chosen])
    if flip:
        mirrored = rng.integers(0, 2, size).astype(bool)
        batch[mirrored] = batch[mirrored, :, ::-1]
    if levels is not None:
        sigma = np.exp(rng.uniform(np.log(levels[0]), np.log(levels[1]), size)).astype(np.float32)
        noise = rng.standard_normal(batch.shape, dtype=np.float32)
        return batch + sigma[:, None, None, None] * noise, labels[chosen], sigma
    padded = np.pad(batch, ((0, 0), (1, 1), (1, 1), (0, 0)))
    top, left = rng.integers(0, 3, (2, size))
    height, width = batch.shape[1:3]
    moved = np.stack([p[a : a + height, b : b + width] for p, a, b in zip(padded, top, left, strict=True)])
    return moved, labels[chosen], np.ones(size, np.float32)


def accuracy(model: Classifier, params: Any, images: np.ndarray, labels: np.ndarray, noise: float | None) -> float:
    """Share of images whose largest logit is their class; the noise-conditional form sees them with this noise."""
    rng, right = np.random.default_rng(1), 0
    apply = jax.jit(lambda params, x, sigma: model.apply({"params": params}, x, sigma)[0])
    for start in range(0, len(images), _TEST_BATCH):
        x = arrays.to_unit(images[start : start + _TEST_BATCH])
        if noise is not None:
            x = x + np.float32(noise) * rng.standard_normal(x.shape, dtype=np.float32)
        logits = np.asarray(apply(params, x, jnp.full(len(x), noise or 1.0, jnp.float32)))
        right += int(np.sum(logits.argmax(axis=1) == labels[start : start + _TEST_BATCH]))
    return right / len(images)


def write_reference(out: str, data: str, images: np.ndarray, labels: np.ndarray, held_out: np.ndarray) -> None:
    """Moments of the data, seen by the classifier in ``out``."""
    classifier = classifier_features.from_folder(out)
    train, test = (arrays.to_unit(some) for some in (images, held_out))
    references.make(train, labels, test, classifier, data).save(pathlib.Path(out) / references.FILE)


def main() -> None:
    """Train, test, save."""
    parser = scripts.Arguments(__doc__)
    parser.add_argument("--data", choices=sorted(RECIPES), required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise_conditional", action="store_true")
    parser.add_argument("--reference_only", action="store_true", help="train nothing")
    args = parser.read()

    started, recipe = time.monotonic(), RECIPES[args.data]
    steps, batch_size = args.steps or recipe.steps, args.batch_size or recipe.batch_size
    (images, labels), (test_images, test_labels) = recipe.load("train"), recipe.load("test")
    if args.reference_only:
        write_reference(args.out, args.data, images, labels, test_images)
        return
    model = Classifier(**recipe.model, noise_conditional=args.noise_conditional)
    first = jnp.asarray(arrays.to_unit(images[:1]))
    params = model.init(jax.random.key(args.seed), first, jnp.ones(1))["params"]
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-4)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any, batch: tuple) -> tuple:
        def loss_fn(params: Any) -> jax.Array:
            logits, _ = model.apply({"params": params}, batch[0], batch[2])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]))

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    rng = np.random.default_rng(args.seed)
    for number in range(steps):
        levels = recipe.sigma if args.noise_conditional else None
        batch = draw_batch(images, labels, rng, batch_size, levels, recipe.flip)
        params, opt_state, loss = step(params, opt_state, batch)
        if (number + 1) % 500 == 0 or number + 1 == steps:
            print(f"step {number + 1}: loss {float(loss):.4f}, {time.monotonic() - started:.0f} s", flush=True)

    noises = (0.1, 0.3, 1.0) if args.noise_conditional else ()
    clean = recipe.sigma[0] if args.noise_conditional else None
    report = {
        "test_accuracy": accuracy(model, params, test_images, test_labels, clean),
        "test_accuracy_at_noise": {
            str(level): accuracy(model, params, test_images, test_labels, level) for level in noises
        },
        "parameters": int(sum(leaf.size for leaf in jax.tree.leaves(params))),
        "steps": steps,
        "batch_size": batch_size,
        "train_images": len(images),
        "test_images": len(test_images),
        "seconds": round(time.monotonic() - started, 1),
    }
    fields = ("widths", "pools", "features", "classes", "normalised", "noise_conditional")
    config = {
        "name": "classifier",
        "data": args.data,
        "shape": list(images.shape[1:]),
        **{field: getattr(model, field) for field in fields},
    }
    checkpoints.save_parameters(args.out, params, {**config, "report": report})
    if not args.noise_conditional:
        write_reference(args.out, args.data, images, labels, test_images)
    print(json.dumps(report))


if __name__ == "__main__":
    with one_line_errors():
        main()
