"""Latent diffusion: networks, text and pipelines of diffusers folders, as score functions of latents."""
