"""Whether a recipe's towers can be had, without building or downloading any."""

from __future__ import annotations

from pathlib import Path

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.data.caption_limit import model_config, open_clip_module
from cs_aligner_cli.recipe.encoders import (
    EncoderSpec,
    FeaturesEncoder,
    OpenClipEncoder,
    SentenceTransformersEncoder,
    TimmEncoder,
)
from cs_aligner_cli.recipe.recipe import Recipe


def weight_files(recipe: Recipe) -> list[Path]:
    """The files on disk that hold encoder weights, whose change makes embeddings stale."""
    return sorted({file for modality in MODALITIES for file in weights_of(recipe.encoders.of(modality))})


def weights_of(spec: EncoderSpec) -> list[Path]:
    """The files on disk that hold the weights of one encoder."""
    files: list[Path] = []
    model = getattr(spec, "model", None) or ""
    folder = Path(model.removeprefix("local-dir:"))
    if model.startswith("local-dir:") and folder.is_dir():
        files += [path for path in folder.rglob("*") if path.is_file()]
    for named in (getattr(spec, "pretrained", None), getattr(spec, "checkpoint", None)):
        if named and Path(named).is_file():
            files.append(Path(named))
    return files


def brings_weights(spec: EncoderSpec) -> bool:
    """Whether a tower's weights come from elsewhere, so that they may be what its configuration does not say."""
    return not isinstance(spec, FeaturesEncoder) and not getattr(spec, "random_init", False)


def waits_for_hub(spec: EncoderSpec) -> bool:
    """Whether a tower's files must still be fetched from a model hub."""
    repositories = [repository for repository in _repositories(spec) if repository]
    if not repositories:
        return False
    from cs_aligner_cli.data.hub_files import is_cached

    return not all(map(is_cached, repositories))


def _repositories(spec: EncoderSpec) -> list[str]:
    """The repositories of the hub that a tower takes files from."""
    model = getattr(spec, "model", None) or ""
    if isinstance(spec, FeaturesEncoder) or model.startswith("local-dir:"):
        return []
    if model.startswith("hf-hub:"):
        return [model.removeprefix("hf-hub:")]
    if isinstance(spec, OpenClipEncoder):
        weights = open_clip_module("pretrained").get_pretrained_cfg(model, spec.pretrained or "").get("hf_hub", "")
        text = model_config(model).get("text_cfg", {})
        return [weights.rstrip("/"), text.get("hf_model_name", ""), text.get("hf_tokenizer_name", "")]
    if isinstance(spec, TimmEncoder):
        import timm

        known = timm.get_pretrained_cfg(model, allow_unregistered=True) if spec.checkpoint is None else None
        return [known.hf_hub_id or ""] if known else []
    return [] if Path(model).expanduser().is_dir() else [model]


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
        from cs_aligner_cli.encoders.hub import refuse_absent, refuse_without_preprocessor, refuse_without_tokenizer

        pipeline = isinstance(spec, SentenceTransformersEncoder)
        refuse_absent(spec.model, key, "modules.json" if pipeline else "config.json")
        if not pipeline and spec.model.startswith("local-dir:"):
            refuse = refuse_without_tokenizer if modality == "text" else refuse_without_preprocessor
            refuse(Path(spec.model.removeprefix("local-dir:")), key)
    return f"{spec.kind} {spec.model}"


def refuse_unknown_model(recipe: Recipe, modality: str) -> None:
    """Raise InputError for a model that open_clip or timm does not know by name; no hub is asked, nothing is read."""
    spec = recipe.encoders.of(modality)
    if not isinstance(spec, OpenClipEncoder | TimmEncoder) or spec.model is None or ":" in spec.model:
        return
    if isinstance(spec, TimmEncoder):
        from cs_aligner_cli.encoders import timm

        timm.refuse_unknown_architecture(spec.model, f"encoders.{modality}")
    elif not model_config(spec.model):  # only then the import, which takes seconds
        from cs_aligner_cli.encoders import open_clip

        open_clip.refuse_unknown_architecture(spec.model)


def _stored(recipe: Recipe, modality: str) -> str:
    from cs_aligner_cli.data.manifest import DrawnManifest, EmbeddingsManifest, load_manifest

    manifest = load_manifest(recipe)
    if isinstance(manifest, DrawnManifest):
        return "features that csalign draws"
    if not isinstance(manifest, EmbeddingsManifest):  # parts that a pattern finds
        return f"features in {manifest.root}"
    part = {"image": manifest.images, "text": manifest.captions, **manifest.modalities}.get(modality)
    assert manifest.root is not None
    if part is None or part.features is None:
        raise InputError(f"encoders.{modality}: the manifest {manifest.name} brings no features of it")
    path = manifest.root / part.features
    if not path.is_file():
        raise InputError(f"encoders.{modality}: {path}: no such file", "The manifest names it; is data.root right?")
    return f"features in {path}"
