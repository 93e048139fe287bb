"""What a training run leaves for other programs: a card, peft folders, and a merged open_clip model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.encoders import Encoder
from cs_aligner_cli.encoders.hub import same_encoder
from cs_aligner_cli.files.artifact import write_json
from cs_aligner_cli.recipe.encoders import OPEN_CLIP_FOLDER
from cs_aligner_cli.recipe.towers import Lora
from cs_aligner_cli.runs.run_record import versions
from cs_aligner_cli.towers.towers import TowerPlan, Towers

CARD = "card.json"


def export_towers(folder: Path, towers: Towers, encoders: Mapping[str, Encoder], card: Mapping[str, Any]) -> None:
    """Write ``card.json``, ``peft_image`` and ``peft_text`` (towers with LoRA) and ``open_clip`` (below) to ``folder``.

    The open_clip folder holds both towers, LoRA merged, where both belong to one open_clip model and no adapter stands
    on top of them: ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` loads it.
    """
    towers.eval()
    if encoders:
        _export_live(folder, towers, encoders)
    plans = {m: {"tune": plan.tune, "adapter": plan.adapter, "lora": plan.lora} for m, plan in towers.plans.items()}
    about = {"towers": plans, "encoders": {m: plan.encoder for m, plan in towers.plans.items()}, "versions": versions()}
    write_json(folder / CARD, {**card, **about})


def _export_live(folder: Path, towers: Towers, encoders: Mapping[str, Encoder]) -> None:
    modules = {m: encoder.backbone for m, encoder in encoders.items()}
    for modality, plan in towers.plans.items():
        if plan.lora is not None:
            from cs_aligner_cli.towers.lora import save_peft  # peft takes seconds to import

            save_peft(modules[modality], Lora.model_validate(plan.lora), folder / f"peft_{modality}")
    clip = next((encoder.clip for encoder in encoders.values()), None)
    one_model = clip is not None and all(same_encoder(clip.identity, towers.plans[m].encoder or {}) for m in MODALITIES)
    if clip is not None and one_model and not any(plan.adapter for plan in towers.plans.values()):
        scale, bias = (float(value.detach()) for value in towers.logits)
        plain = {m: _without_lora(module, towers.plans[m]) for m, module in modules.items()}
        clip.save(folder / OPEN_CLIP_FOLDER, scale, bias or None, plain)


def _without_lora(module: nn.Module, plan: TowerPlan) -> nn.Module:
    """The tower itself, or a copy with LoRA merged."""
    if plan.lora is None:
        return module
    from cs_aligner_cli.towers.lora import merged

    return merged(module)
