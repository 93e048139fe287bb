"""Packages that only some of csalign needs, and the extras of pyproject.toml that install them."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from cs_aligner_cli.common.errors import InputError

# The extra by the package as it is imported.
EXTRAS = {
    "open_clip": "encoders",
    "transformers": "encoders",
    "sentence_transformers": "encoders",
    "timm": "encoders",
    "peft": "lora",
    "matplotlib": "report",
    "sklearn": "report",
    "umap": "umap",
    "webdataset": "webdataset",
    "h5py": "hdf5",
    "pillow_heif": "heic",
    "huggingface_hub": "encoders",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "diffusers": "t2i",
    "accelerate": "t2i",
    "torch_fidelity": "fid",
    "optuna": "search",
    "submitit": "slurm",
}


def installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported."""
    return sys.modules[package] is not None if package in sys.modules else find_spec(package) is not None


def require_package(package: str, what: str, otherwise: str = "") -> None:
    """Raise InputError, which names the extra to install, where the ``package`` that ``what`` needs is not installed.

    ``otherwise`` is a sentence on what can be done without.
    """
    if not installed(package):
        raise InputError(
            f"{what} needs {package}, which is not installed",
            f"pip install 'cs-aligner-cli[{EXTRAS[package]}]'" + (f"; {otherwise}" if otherwise else ""),
        )
