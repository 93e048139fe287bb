"""The check of every tower that brings weights: tokenizers that are not there, contexts, captions that are cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, models, pre_tokenizers

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.encoders import Encoder, load_encoders
from cs_aligner_cli.encoders.preflight import CAPTIONS, COUNT, check_tower
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.recorded_findings import recorded_findings

Csalign = Callable[..., Any]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [
    mark + c for c in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")
]
CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 8, "width": 8, "heads": 1, "layers": 1},
}


def text_tower(**spec: Any) -> Encoder:
    image = {"kind": "open_clip", "random_init": True, "config": {}}
    recipe = Recipe.model_validate({"name": "x", "encoders": {"image": image, "text": spec}})
    return load_encoders(recipe, None, torch.device("cpu"), ["text"])["text"]


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A BERT whose word pieces are letters."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(LETTERS), max_position_embeddings=32, **SMALL)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(LETTERS))
    return tmp_path / "bert"


def test_a_tower_that_tells_items_apart_passes(bert: Path) -> None:
    check_tower(text_tower(kind="transformers", model=f"local-dir:{bert}"), "encoders.text")


def test_folders_without_a_vocabulary_are_refused(bert: Path, tmp_path: Path) -> None:
    transformers.BertTokenizer(str(bert / "vocab.txt")).save_pretrained(bert)
    pipeline = SentenceTransformer(modules=[modules.Transformer(str(bert)), modules.Pooling(16)])
    pipeline.save(str(tmp_path / "st"))
    for folder, kind in ((bert, "transformers"), (tmp_path / "st", "sentence_transformers")):
        check_tower(text_tower(kind=kind, model=f"local-dir:{folder}"), "encoders.text")
        for file in (*folder.glob("vocab*"), *folder.glob("tokenizer.json")):
            file.unlink()
        found = message_of(lambda kind=kind, folder=folder: text_tower(kind=kind, model=f"local-dir:{folder}"))  # type: ignore[misc]
        assert f"encoders.text: {folder}" in found and "has no tokenizer files" in found


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "gpt2", "llama"])
def test_every_kind_of_text_model_without_its_tokenizer_has_the_same_message(kind: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"model_type": kind}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    found = message_of(lambda: text_tower(kind="transformers", model=f"local-dir:{tmp_path}"))
    assert f"encoders.text: {tmp_path} has no tokenizer files" in found


def test_a_tokenizer_that_knows_no_word_is_refused_unless_it_knows_those_of_the_data(bert: Path) -> None:
    """Sixteen captions of four unknown words are one sequence; a tokenizer of one field's words is right there."""
    own = [f"mono{a} di{b}" for a in "abcd" for b in "wxyz"]
    words = {
        word: i for i, word in enumerate(["[PAD]", "[UNK]", *dict.fromkeys(w for text in own for w in text.split())])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    (bert / "vocab.txt").unlink()
    fast.save_pretrained(bert)
    tower = text_tower(kind="transformers", model=f"local-dir:{bert}")
    found = message_of(lambda: check_tower(tower, "encoders.text"))
    assert f"{COUNT} different captions have 1 different embeddings: its tokenizer makes 1 different sequences" in found
    check_tower(tower, "encoders.text", own)
    assert "different captions" in message_of(lambda: check_tower(tower, "encoders.text", ["some", "other", "words"]))


def test_a_prompt_that_fills_the_context_is_refused(bert: Path) -> None:
    tower = text_tower(kind="transformers", model=f"local-dir:{bert}", prompt="ab cd ef gh ij {text}", max_length=10)
    assert "Does max_length leave room" in message_of(lambda: check_tower(tower, "encoders.text"))


def test_weights_that_make_all_alike_or_no_numbers_are_refused(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    for value, message in ((0.0, "16 different captions have 1 different embeddings"), (float("nan"), "no numbers")):
        changed = {name: torch.full_like(tensor, value) for name, tensor in state.items()}
        save_file(changed, bert / "model.safetensors", {"format": "pt"})
        tower = text_tower(kind="transformers", model=f"local-dir:{bert}")
        assert message in message_of(lambda tower=tower: check_tower(tower, "encoders.text"))  # type: ignore[misc]


def test_the_sixteen_captions_differ_from_their_first_word_on() -> None:
    assert len({caption.split()[0] for caption in CAPTIONS}) == len(CAPTIONS) == COUNT
    assert {len(caption.split()) for caption in CAPTIONS} == {4}


def test_positions_are_counted_as_the_weights_have_them(tmp_path: Path) -> None:
    """RoBERTa's table of 34 rows with padding id 1 holds 32 tokens; more would be read from beyond it."""
    torch.manual_seed(0)
    config = transformers.RobertaConfig(vocab_size=len(LETTERS), max_position_embeddings=34, pad_token_id=1, **SMALL)
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(LETTERS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[UNK]")
    fast.save_pretrained(tmp_path)
    tower = text_tower(kind="transformers", model=f"local-dir:{tmp_path}")
    assert tower.caption_limit is not None and tower.caption_limit.tokens == 32
    assert tower.caption_limit.lengths(["abc de", "a" * 90]) == [5, 90]
    spec = {"kind": "transformers", "model": f"local-dir:{tmp_path}", "max_length": 33}
    assert "max_length: 33 tokens, but the model's weights have positions for 32" in message_of(
        lambda: text_tower(**spec)
    )


# ---- open_clip folders


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def test_a_context_other_than_the_weights_is_refused(saved: Path) -> None:
    """open_clip would interpolate the positions, and say nothing."""
    (saved / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**CLIP, "text_cfg": {**CLIP["text_cfg"], "context_length": 16}}})  # type: ignore[dict-item]
    )
    found = message_of(lambda: text_tower(kind="open_clip", model=f"local-dir:{saved}"))
    assert "were trained with a context of 8 tokens, but the configuration says 16" in found


def test_a_logit_bias_loads_whether_or_not_the_configuration_names_it(saved: Path) -> None:
    weights = saved / "open_clip_model.safetensors"
    save_file({**load_file(weights), "logit_bias": torch.tensor(-9.5)}, weights)
    tower = text_tower(kind="open_clip", model=f"local-dir:{saved}")
    assert tower.clip.model.logit_bias.item() == -9.5
    # What we save then loads in open_clip itself.
    tower.clip.save(saved.parent / "again", 10.0, -9.5)
    again = open_clip.create_model(f"local-dir:{saved.parent / 'again'}")
    assert again.logit_bias.item() == -9.5


def test_captions_that_are_cut_are_counted_for_every_kind(
    csalign: Csalign, saved: Path, bert: Path, tmp_path: Path
) -> None:
    """The case cut_captions_not_told_for_local_dir; and doctor says how much each tower reads."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.png")
    lines = ["image,caption,split", *(f"{i}.png,{'word ' * (1 + 9 * i)},test" for i in range(4))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    columns = {"image_column": "image", "caption_column": "caption", "split_column": "split"}
    manifest = {"name": "m", "kind": "table", "root": ".", "table": "t.csv", "image_dir": "images", **columns}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
    config = {"kind": "open_clip", "random_init": True, "config": CLIP}
    folder = {"kind": "open_clip", "model": f"local-dir:{saved}"}
    kinds = {"config": (config, config, 8), "folder": (folder, folder, 8)}
    kinds["bert"] = folder, {"kind": "transformers", "model": f"local-dir:{bert}"}, 32
    for name, (image, text, limit) in kinds.items():
        recipe: dict[str, Any] = {"name": name, "run_dir": f"run_{name}", "data": {"manifest": "m.yaml"}, "train": None}
        recipe["encoders"] = {"image": image, "text": text}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        prepared = csalign("prepare", tmp_path / f"{name}.yaml", "--json")
        lengths = prepared.json["caption_lengths"]
        assert (lengths["truncated"], lengths["limit"]) == (3, limit), name
        assert f"3 captions are longer than the {limit} tokens" in prepared.stderr.replace("\n", " ")
        layout = Layout(load_recipe(str(tmp_path / f"{name}.yaml")))
        assert any(f"longer than the {limit} tokens" in finding for finding in recorded_findings(layout)), name
        assert [*prepared.json["towers"]] == ([] if name == "config" else ["image", "text"])
        assert csalign("prepare", tmp_path / f"{name}.yaml", "--json").json["status"] == "fresh", name
    code = "import sys; from cs_aligner_cli.cli.main import app\n"
    code += (
        "try: app(sys.argv[1:])\nexcept SystemExit as ended: print(ended.code, {'torch', 'open_clip'} & {*sys.modules})"
    )
    again = subprocess.run(
        [sys.executable, "-c", code, "prepare", tmp_path / "bert.yaml"], capture_output=True, text=True
    )
    assert again.stdout.endswith("0 set()\n") and "nothing to do" in again.stderr
    examined = csalign("doctor", tmp_path / "bert.yaml", "--json").json["checks"]
    checked = {check["name"]: check["found"] for check in examined}
    assert "tells 16 items apart, reads 32 tokens" in checked["encoders.text"]
    assert "tells 16 items apart" in checked["encoders.image"]
    # A tower that changes is checked again.
    shutil.copy(saved / "open_clip_config.json", saved / "copy.json")
    assert csalign("prepare", tmp_path / "bert.yaml", "--json").json["status"] == "done"


def test_prepare_asks_open_clip_without_importing_its_models(tmp_path: Path) -> None:
    """Tokens are counted, and a tag's repository looked up, without torchvision, timm and transformers."""
    code = (
        "import sys\n"
        "from cs_aligner_cli.data.caption_lengths import open_clip_counter\n"
        "from cs_aligner_cli.encoders.availability import waits_for_hub\n"
        "from cs_aligner_cli.recipe.encoders import OpenClipEncoder\n"
        "print(open_clip_counter()(['two dogs', 'a']))\n"
        "print(waits_for_hub(OpenClipEncoder(kind='open_clip', model='ViT-B-32', pretrained='laion2b_s34b_b79k')))\n"
        "print({'open_clip', 'torchvision', 'timm', 'transformers'} & {*sys.modules})"
    )
    empty = {**os.environ, "HF_HUB_CACHE": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=empty)
    assert found.stdout.splitlines() == ["[4, 3]", "True", "set()"]
