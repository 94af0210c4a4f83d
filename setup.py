"""Package metadata; the version lives in pds_jax/version.py."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "pds_jax" / "version.py").read_text()).group(1)


class BuildWithModels(build_py):
    """Put the trained models of checkpoints/ into the wheel, as pds_jax/checkpoints_shipped."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the repository's own folder is used
            return
        target = pathlib.Path(self.build_lib) / "pds_jax" / "checkpoints_shipped"
        for name in ("model.safetensors", "config.json", "statistics.npz", "reference.npz", "README.md"):
            for file in sorted((HERE / "checkpoints").glob(f"*/{name}")):
                copy = target / file.relative_to(HERE / "checkpoints")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


setup(
    name="pds_jax",
    version=VERSION,
    description="Preconditioned Diffusion Sampling for score-based generative models, in JAX/Flax",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["pds_jax", "pds_jax.*", "configs", "configs.*"]),
    package_data={"pds_jax": ["py.typed"]},
    # The floors of JAX's family are the oldest that scripts/check_jax_versions.sh was run on.
    install_requires=[
        "jax>=0.8.0",
        "flax>=0.12.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12.8",
        "ml_collections>=1.0.0",
        "absl-py>=2.1.0",
        "numpy>=1.26",
        "scipy>=1.12",
        "diffrax>=0.7.0",
        "safetensors>=0.4.5",
        "msgpack>=1.0.8",
        "ml_dtypes>=0.4.0",
        "tensorflow-datasets>=4.9.7",
        "tqdm>=4.66",
        "Pillow>=10.3",
        "matplotlib>=3.8",
        "scikit-learn>=1.4",
        "scikit-image>=0.23",
        "tensorboardX>=2.6.2",
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.8.0"],
        "latent": ["tokenizers>=0.21"],
        "metrics": ["torch-fidelity>=0.3.0"],
        "convert": ["torch>=2.4", "diffusers>=0.31"],
        "notebooks": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"],
        "docs": ["sphinx>=8.1", "furo>=2024.8.6", "myst-parser>=4.0", "sphinx-copybutton>=0.5.2"],
        "test": [
            "pytest>=8.2",
            "pytest-xdist>=3.5",
            "ruff>=0.9",
            "mypy>=1.14",
            "pip-audit>=2.9",
            "tokenizers>=0.21",
            "transformers>=4.48",
        ],
    },
    cmdclass={"build_py": BuildWithModels},
    entry_points={"console_scripts": ["pds_jax = pds_jax.main:run"]},
)
