"""Whether a recipe's towers can be had, without building or downloading any."""

from __future__ import annotations

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.encoders import (
    FeaturesEncoder,
    OpenClipEncoder,
    SentenceTransformersEncoder,
    TimmEncoder,
)
from cs_aligner_cli.recipe.recipe import Recipe


def require_encoder_of(recipe: Recipe, modality: str) -> str:
    """Say what the tower of "image" or "text" is; raise InputError, as loading it would, if it cannot be had.

    A model of the hub is there if it is cached or the hub answers.
    """
    spec, key = recipe.encoders.of(modality), f"encoders.{modality}"
    if isinstance(spec, FeaturesEncoder):
        return _stored(recipe, modality)
    if isinstance(spec, OpenClipEncoder):
        from cs_aligner_cli.encoders.open_clip import require_open_clip

        require_open_clip(spec)
        return f"open_clip {spec.model or 'of a config of its own'}{', random weights' if spec.random_init else ''}"
    if isinstance(spec, TimmEncoder):
        from cs_aligner_cli.encoders.timm import require_timm

        require_timm(spec, key)
    else:
        from cs_aligner_cli.encoders.hub import refuse_absent

        pipeline = isinstance(spec, SentenceTransformersEncoder)
        refuse_absent(spec.model, key, "modules.json" if pipeline else "config.json")
    return f"{spec.kind} {spec.model}"


def _stored(recipe: Recipe, modality: str) -> str:
    from cs_aligner_cli.data.manifest import EmbeddingsManifest, load_manifest

    manifest = load_manifest(recipe)
    if not isinstance(manifest, EmbeddingsManifest):
        return "features that csalign draws"
    part = {"image": manifest.images, "text": manifest.captions, **manifest.modalities}.get(modality)
    assert manifest.root is not None
    if part is None:
        raise InputError(f"encoders.{modality}: the manifest {manifest.name} brings no features of it")
    path = manifest.root / part.features
    if not path.is_file():
        raise InputError(f"encoders.{modality}: {path}: no such file", "The manifest names it; is data.root right?")
    return f"features in {path}"
