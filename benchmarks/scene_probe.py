"""Which attributes of a drawn scene its image embedding holds: no decoder can draw what is not there.

python benchmarks/scene_probe.py runs/scenes_generate/embeddings/frozen

Prints, for each attribute, the share of the test split's pictures of scenes_alone of which a ridge regression reads it
that was fitted on the training split's embeddings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.data.manifest import ScenesManifest, load_manifest
from cs_aligner_cli.data.scenes import make_scenes
from cs_aligner_cli.generation.scene_attributes import ATTRIBUTES, scene_attributes
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.stores.embeddings import Store

PENALTY = 10.0


def readable(fitted: npt.NDArray[np.float64], labels: Sequence[str], rows: npt.NDArray[np.float64]) -> list[str]:
    """The labels of rows (M, dim), by ridge regression of one-hot labels on standardised ``fitted`` (N, dim)."""
    names = sorted(set(labels))
    targets = np.eye(len(names))[[names.index(label) for label in labels]]
    mean, spread = fitted.mean(axis=0), fitted.std(axis=0) + 1e-6
    x, y = (fitted - mean) / spread, (rows - mean) / spread
    weight = np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ (targets - targets.mean(axis=0)))
    return [names[i] for i in (y @ weight + targets.mean(axis=0)).argmax(axis=1)]


def main() -> None:
    """Print the shares as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, help="the folder with the stores of both splits")
    folder = parser.parse_args().stores
    train, test = (Store(folder / split).array("image").all().astype(np.float64) for split in ("train", "test"))
    manifest = load_manifest(load_recipe("scenes_generate"))
    assert isinstance(manifest, ScenesManifest)
    made = make_scenes(manifest.images.model_dump(), manifest.seed, manifest.objects, manifest.sizes)
    found = {}
    for attribute in ATTRIBUTES:
        labels, truths = ([scene_attributes(scene)[attribute] for scene in made[split]] for split in ("train", "test"))
        found[attribute] = round(float(np.mean(np.array(readable(train, labels, test)) == np.array(truths))), 3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
