"""Preconditioned diffusion sampling in plain JAX, on an included model:  python example.py

Ma et al., "Preconditioned Score-based Generative Models", IJCV 2025, algorithm 2, for a VE network: Langevin corrector,
then reverse-diffusion predictor, with M = F⁻¹ R F in both. Writes example.png: above without M, below with it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import pds_jax
from pds_jax.io import images

MODEL, N, ALPHA, SNR, SEEDS = "photos", 40, 5.0, 0.16, range(16)


def filtered(x, R):
    """F⁻¹[R ⊙ F x] over height and width."""
    return jnp.fft.irfft2(R[None] * jnp.fft.rfft2(x, axes=(1, 2)), s=x.shape[1:3], axes=(1, 2))


@functools.partial(jax.jit, static_argnums=3)
def sample(score, keys, R, N):
    """N iterations, two evaluations of the score each; images (B, H, W, C) in the model's range."""
    sde = trained.sde
    M, MMt = lambda z: filtered(z, R), lambda g: filtered(g, R**2)
    t = jnp.linspace(1.0, 1e-5 * 1000 / N, N)
    sigma = jnp.geomspace(sde.sigma_min, sde.sigma_max, N)[::-1]
    below = jnp.append(sigma[1:], 0.0)

    def normal(step, draw):
        drawn = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, step), draw))(keys)
        return jax.vmap(lambda key: jax.random.normal(key, trained.shape))(drawn)

    def norm(x):
        return jnp.sqrt(jnp.sum(x**2, axis=(1, 2, 3), keepdims=True))

    def iteration(x, i):
        time = jnp.full(len(keys), t[i])
        g, n = MMt(score(x, time)), M(normal(i + 1, 0))  # corrector
        eps = 2 * (SNR * norm(n) / norm(g)) ** 2
        x = x + eps * g + jnp.sqrt(2 * eps) * n
        G2 = sigma[i] ** 2 - below[i] ** 2  # predictor
        x_mean = x + G2 * MMt(score(x, time))
        return x_mean + jnp.sqrt(G2) * M(normal(i + 1, 1)), x_mean

    x = sde.sigma_max * M(normal(0, 0))
    return jax.lax.scan(iteration, x, jnp.arange(N))[1][-1]


trained = pds_jax.load(MODEL)


def main():
    """Both rows, from the same seeds."""
    r_f = trained.statistics.r_f[:, : trained.shape[1] // 2 + 1]  # log(1 + mean |F x|²) of the training images
    R = ALPHA / (r_f / r_f.max() + ALPHA - 1)
    keys = pds_jax.image_keys(SEEDS)
    rows = [np.asarray(sample(trained.score_fn, keys, jnp.asarray(filter), N)) for filter in (np.ones_like(R), R)]
    images.save_png("example.png", images.grid(images.enlarge(np.concatenate(rows).clip(0, 1), 4), columns=len(SEEDS)))
    print(f"example.png: {2 * N} evaluations per image; above alpha=inf, below alpha={ALPHA:g}")
    return rows


if __name__ == "__main__":
    main()
