"""Inception's features of pictures, as FID wants them, from a weights file that the user names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.extras import require_package
from cs_aligner_cli.common.types import Floats32
from cs_aligner_cli.recipe.generate import Inception

_LAYER = "2048"


def require_inception(spec: Inception) -> str:
    """The SHA-256 of the weights file; InputError if it or torch-fidelity is missing, or its checksum is another
    one."""
    require_package("torch_fidelity", "generate.metrics.inception")
    if not spec.weights.is_file():
        raise InputError(
            f"generate.metrics.inception.weights: {spec.weights}: no such file",
            "It is weights-inception-2015-12-05-6726825d.pth, which torch-fidelity publishes with its release v0.2.0.",
        )
    with spec.weights.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if not found.startswith(spec.sha256):
        raise InputError(
            f"generate.metrics.inception: {spec.weights} has SHA-256 {found}; expected one that begins with "
            f"{spec.sha256}",
            "The file is damaged or another one; generate.metrics.inception.sha256 names the one that is meant.",
        )
    return found


def inception_features(spec: Inception) -> Callable[[Sequence[Image.Image]], Floats32]:
    """What maps pictures to (B, 2048) features: torch-fidelity's network, which resizes as TensorFlow 1 did."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles whatever the file holds; it gets one that was read as plain tensors and written anew.
    with TemporaryDirectory() as scratch:
        clean = f"{scratch}/weights.pth"
        torch.save(torch.load(spec.weights, map_location="cpu", weights_only=True), clean)
        network = FeatureExtractorInceptionV3("inception-v3-compat", [_LAYER], clean)

    def features(pictures: Sequence[Image.Image]) -> Floats32:
        pixels = torch.stack([torch.from_numpy(np.array(p.convert("RGB"))).permute(2, 0, 1) for p in pictures])
        with torch.inference_mode():
            found: Floats32 = network(pixels)[0].numpy()
        return found

    return features
