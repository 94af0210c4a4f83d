"""Train the small digits classifier whose features and classes judge samples of the `digits` model.

python scripts/train_digits_classifier.py --out=checkpoints/digits_classifier
python scripts/train_digits_classifier.py --out=checkpoints/digits_classifier_noisy --noise_conditional

The last line on stdout is JSON: test_accuracy, parameters, seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pds_jax import checkpoints
from pds_jax.data import datasets
from pds_jax.models.digits_classifier import DigitsClassifier

SIGMA_MIN, SIGMA_MAX = 0.01, 4.8


def draw_batch(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, size: int, noisy: bool) -> tuple:
    """A batch, shifted by up to a pixel (clean form) or noised at a log-uniform level (noise-conditional form)."""
    chosen = rng.integers(0, len(images), size)
    batch = images[chosen]
    if noisy:
        sigma = np.exp(rng.uniform(np.log(SIGMA_MIN), np.log(SIGMA_MAX), size)).astype(np.float32)
        noise = rng.standard_normal(batch.shape, dtype=np.float32)
        return batch + sigma[:, None, None, None] * noise, labels[chosen], sigma
    padded = np.pad(batch, ((0, 0), (1, 1), (1, 1), (0, 0)))
    top, left = rng.integers(0, 3, (2, size))
    moved = np.stack([p[a : a + 8, b : b + 8] for p, a, b in zip(padded, top, left, strict=True)])
    return moved, labels[chosen], np.full(size, SIGMA_MIN, np.float32)


def accuracy(model: DigitsClassifier, params: Any, images: np.ndarray, labels: np.ndarray, sigma: float) -> float:
    """Share of images whose largest logit is their class."""
    levels = jnp.full(len(images), sigma, jnp.float32)
    logits, _ = model.apply({"params": params}, jnp.asarray(images), levels)
    return float(np.mean(np.argmax(np.asarray(logits), axis=-1) == labels))


def main() -> None:
    """Train, test, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise_conditional", action="store_true")
    args = parser.parse_args()

    started = time.monotonic()
    images, labels = datasets.digits("train")
    test_images, test_labels = datasets.digits("test")
    model = DigitsClassifier(noise_conditional=args.noise_conditional)
    params = model.init(jax.random.key(args.seed), jnp.asarray(images[:1]), jnp.ones(1))["params"]
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, args.steps), weight_decay=1e-4)
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
    for number in range(args.steps):
        batch = draw_batch(images, labels, rng, args.batch_size, args.noise_conditional)
        params, opt_state, loss = step(params, opt_state, batch)
        if (number + 1) % 500 == 0:
            print(f"step {number + 1}: loss {float(loss):.4f}", flush=True)

    noise = np.random.default_rng(1).standard_normal(test_images.shape, dtype=np.float32)
    levels = (0.1, 0.3, 1.0) if args.noise_conditional else ()
    report = {
        "test_accuracy": accuracy(model, params, test_images, test_labels, SIGMA_MIN),
        "test_accuracy_at_noise": {
            str(level): accuracy(model, params, test_images + np.float32(level) * noise, test_labels, level)
            for level in levels
        },
        "parameters": int(sum(leaf.size for leaf in jax.tree.leaves(params))),
        "steps": args.steps,
        "train_images": len(images),
        "test_images": len(test_images),
        "seconds": round(time.monotonic() - started, 1),
    }
    config = {"name": "digits_classifier", "noise_conditional": args.noise_conditional, "features": 64, "classes": 10}
    checkpoints.save_parameters(args.out, params, {**config, "report": report})
    print(json.dumps(report))


if __name__ == "__main__":
    main()
