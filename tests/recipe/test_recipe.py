"""The recipe: what is refused and how it is told, overrides, paths, defaults, and its JSON Schema."""

# ruff: noqa: E501 (a message is easier to read on one line)
from __future__ import annotations

import copy
import json
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import annotated_types
import jsonschema
import numpy as np
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.manifest import MANIFESTS, read_manifest
from cs_aligner_cli.recipe import shelf
from cs_aligner_cli.recipe.encoders import exported_model
from cs_aligner_cli.recipe.messages import key_paths, section_models
from cs_aligner_cli.recipe.objective import Objective
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe, recipe_schema
from cs_aligner_cli.recipe.strict_yaml import dump_yaml, read_yaml

Path_ = tuple[str, ...]
Write = Callable[..., Path]
Refused = Callable[..., str]

# What must never reach a user: pydantic's own words, union tags and Python's names for things.
INTERNALS = re.compile(
    r"pydantic|function-|tagged-union|literal\[|discriminator|union_tag|kind_of|[Ii]nput should|instance of|"
    r"dictionary|Value error|\bNone\b|\bTrue\b|\bstr\b|\bdict\b|\.open_clip\b|\.residual_mlp\b|https?:"
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test runs in its own folder, without a recipe in the environment."""
    monkeypatch.delenv("CSALIGN_RECIPE", raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(text: str, *overrides: str) -> str:
    """The message about a recipe of that text, named r.yaml, which must be refused."""
    Path("r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_recipe("r.yaml", overrides)
    message = str(caught.value)
    assert not INTERNALS.search(message), message
    return message


def loaded(text: str, *overrides: str) -> Recipe:
    Path("r.yaml").write_text(text, encoding="utf-8")
    return load_recipe("r.yaml", overrides)


def leaves(data: dict[str, Any], prefix: Path_ = ()) -> Iterator[Path_]:
    """The key path of every value that is no section."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


def nested(path: Path_, value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` for the path a.b."""
    for key in reversed(path):
        value = {key: value}
    return typing.cast("dict[str, Any]", value)


def renamed(data: dict[str, Any], path: Path_, name: str) -> dict[str, Any]:
    """A copy in which the last key of ``path`` has another name, in the same place."""
    data = copy.deepcopy(data)
    section = data
    for key in path[:-1]:
        section = section[key]
    items = [(name if key == path[-1] else key, value) for key, value in section.items()]
    section.clear()
    section.update(items)
    return data


_NAMES = {path.rsplit(".", 1)[-1] for path in key_paths(Recipe)}


def misspellings(key: str) -> list[str]:
    """The key with a letter doubled, with its last letter dropped, and (if it is long) with two letters swapped."""
    middle = len(key) // 2
    swapped = key[: middle - 1] + key[middle] + key[middle - 1] + key[middle + 1 :]
    wrong = [key[:middle] + key[middle - 1] + key[middle:], key[:-1], swapped]
    tried = wrong if len(key) > 3 and swapped != key else wrong[:2]
    return [name for name in tried if name and name not in _NAMES]  # "seed" is no misspelling of seeds, but a key


# Keys that a shipped recipe must name: misspelt, they are missing, too.
_REQUIRED = (("name",), ("encoders", "text", "model"), ("generate", "metrics", "inception", "weights"))


def _schema_leaves(data: dict[str, Any]) -> list[Path_]:
    """The leaves but those below sweep.settings and sweep.grid, whose keys are key paths: tests/experiments."""
    return [path for path in leaves(data) if path[:2] not in (("sweep", "settings"), ("sweep", "grid"))]


def _shipped(kind: shelf.Kind) -> list[Any]:
    return [
        pytest.param(name, path, id=f"{name}:{'.'.join(path)}")
        for name in shelf.names(kind)
        for path in _schema_leaves(read_yaml(shelf.find(kind, name)).data)
    ]


def _shipped_keys() -> list[Any]:
    """Every key that a shipped recipe sets, each in the first recipe that does."""
    return [*{parameter.values[1]: parameter for parameter in reversed(_shipped("recipes"))}.values()]


@pytest.mark.parametrize(("name", "path"), _shipped_keys())
def test_a_misspelt_key_of_a_shipped_recipe_is_refused_by_name(name: str, path: Path_, tmp_path: Path) -> None:
    data = read_yaml(shelf.find("recipes", name)).data
    file = tmp_path / "misspelt.yaml"
    right = ".".join(path)
    for wrong_name in misspellings(path[-1]):
        wrong = ".".join((*path[:-1], wrong_name))
        file.write_text(dump_yaml(renamed(data, path, wrong_name)), encoding="utf-8")
        with pytest.raises(InputError) as error:
            load_recipe(str(file))
        message = str(error.value)
        assert f": {wrong}: unknown key; did you mean {right}" in message
        problems = [line for line in message.splitlines() if "problems:" not in line]
        required = path in _REQUIRED  # under another name it is also missing
        assert len(problems) == (2 if required else 1), message
        assert re.search(rf"misspelt\.yaml:\d+: {re.escape(wrong)}:", message)


@pytest.mark.parametrize(("name", "path"), _shipped_keys())
def test_the_same_misspelt_key_with_set_is_refused_by_name(name: str, path: Path_) -> None:
    for wrong_name in misspellings(path[-1]):
        wrong = ".".join((*path[:-1], wrong_name))
        with pytest.raises(InputError) as error:
            load_recipe(name, [f"{wrong}=1"])
        assert str(error.value) == f"--set: {wrong}: unknown key; did you mean {'.'.join(path)}?"


@pytest.mark.parametrize("key", key_paths(Recipe))
def test_every_misspelt_key_of_the_schema_is_refused_by_name_with_set(key: str) -> None:
    path = tuple(key.split("."))
    base = dump_yaml(_base_for(path))
    for wrong_name in misspellings(path[-1]):
        wrong = ".".join((*path[:-1], wrong_name))
        message = refusal(base, f"{wrong}=1")
        assert message.startswith(f"--set: {wrong}: unknown key; did you mean {key}")


def _manifest_keys() -> list[Any]:
    """Every key of every kind of manifest that a shipped one sets, each in the first of its kind that does."""
    kinds = {name: read_yaml(shelf.find("data_manifests", name)).data["kind"] for name in shelf.names("data_manifests")}
    found = reversed(_shipped("data_manifests"))
    return [*{(kinds[parameter.values[0]], parameter.values[1]): parameter for parameter in found}.values()]


def test_the_suffix_of_a_manifest_has_any_case(tmp_path: Path) -> None:
    (tmp_path / "recipe.YML").write_text("name: mine\nrun_dir: run\ndata: {manifest: Mine.YAML}\n", encoding="utf-8")
    assert load_recipe(str(tmp_path / "recipe.YML"), []).data.manifest == str(tmp_path / "Mine.YAML")


@pytest.mark.parametrize(("name", "path"), _manifest_keys())
def test_a_misspelt_key_of_a_shipped_manifest_is_refused_by_name(name: str, path: Path_, tmp_path: Path) -> None:
    data = read_yaml(shelf.find("data_manifests", name)).data
    if path[0] in ("checksums", "shards", "tables", "split_fractions"):
        pytest.skip("its keys are names of files and splits")
    stored = data["kind"] in ("embeddings", "latent", "clip_retrieval")
    recipe = "flickr8k" if stored else "flickr8k_images"
    for wrong_name in misspellings(path[-1]):
        wrong = ".".join((*path[:-1], wrong_name))
        file = tmp_path / "manifest.yaml"
        file.write_text(dump_yaml(renamed(data, path, wrong_name)), encoding="utf-8")
        with pytest.raises(InputError) as error:
            read_manifest(load_recipe(recipe, [f"data.manifest={file}"]))
        expected = rf"manifest\.yaml:\d+: {re.escape(wrong)}: unknown key; did you mean {'.'.join(path)}\?"
        assert re.search(expected, str(error.value))


# Each value is wrong for some keys and right for others.
ANY_VALUES = (
    "some words", "", True, 0, -1, 7, 1.5, 10**30, 1e300, float("nan"), float("inf"), None, [], [1, "x", None], {}, {"a": 1}
)  # fmt: skip


def _base_for(path: Path_) -> dict[str, Any]:
    """A recipe in which only the kinds are given that make ``path`` a key."""
    data: dict[str, Any] = {"name": "x"}
    if (
        path[:2] == ("train", "unpaired_per_pair")
        or path[-1] == "unpaired_negatives"
        or {"pseudo_pairs", "self_training"} & set(path)
    ):
        data["data"] = {"unpaired": {}}
    if "rerank" in path:
        data["train"] = {"matching": {}, "image": {"reads": "tokens"}, "text": {"reads": "tokens"}}
    for tower in ("image", "text"):
        if path[:2] == ("encoders", tower) and path[2:3] not in ((), ("kind",), ("power",)):
            data["encoders"] = {tower: {"kind": "open_clip", "random_init": True, "config": {}}}
        if path[:2] == ("encoders", tower) and path[2:3] == ("power",):
            data["encoders"] = {tower: {"kind": "features"}}
    sections: list[type[BaseModel]] = [Recipe]
    for depth, key in enumerate(path[:-1]):
        if path[0] == "encoders":
            break
        found = next(section.model_fields[key] for section in sections if key in section.model_fields)
        members = list(section_models(found.annotation))
        sections = [section for section in members if path[depth + 1] in section.model_fields]
        if sections != members:
            _set(data, (*path[: depth + 1], "kind"), sections[0].model_fields["kind"].default)
    for name, info in sections[0].model_fields.items() if len(path) > 1 and path[0] != "encoders" else ():
        if info.is_required() and (*path[:-1], name) != ("name",):
            _set(data, (*path[:-1], name), "x")
    return data


def _set(data: dict[str, Any], path: Path_, value: Any) -> dict[str, Any]:
    section = data
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value
    return data


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(recipe_schema())


@pytest.mark.parametrize("key", key_paths(Recipe))
def test_any_value_is_accepted_or_refused_in_plain_words(key: str, schema: jsonschema.Draft202012Validator) -> None:
    path = tuple(key.split("."))
    for value in ANY_VALUES:
        data = _set(_base_for(path), path, value)
        Path("r.yaml").write_text(dump_yaml(data), encoding="utf-8")
        try:
            load_recipe("r.yaml")
        except InputError as error:
            _check_report(str(error), key, value)
        else:
            assert schema.is_valid(data), f"the editor's schema refuses what csalign takes: {key}: {value!r}"


def _check_report(message: str, key: str, value: Any) -> None:
    assert not INTERNALS.search(message), message
    lines = [line.strip() for line in message.splitlines() if "problems:" not in line]
    found = [re.match(r"r\.yaml:\d+: ([a-z0-9_.]+): ", line) for line in lines]
    assert all(found), message
    # The key itself, something in it, or (checks across keys) the section that it is in.
    about = [match[1] for match in found if match]
    assert all(a == key or a.startswith(f"{key}.") or key.startswith(f"{a}.") for a in about), message
    assert len(set(about)) == len(about), f"two messages about one key: {message}"
    assert len(about) == 1 or isinstance(value, list | dict), message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: 3", "r.yaml:2: train: got 3; expected a section with keys such as from, split, val_split, val_fraction, or null"),
        ("encoders: null", "r.yaml:2: encoders: got null; expected a section with keys such as image, text, further"),
        ("data: null", "r.yaml:2: data: got null; expected a section with keys such as manifest, root, dir, max_bad_fraction"),
        ("data: scenes", 'r.yaml:2: data: got "scenes"; expected a section with keys such as manifest, root, dir, max_bad_fraction'),
        ("encoders: {image: null}", "r.yaml:2: encoders.image: got null; expected a section with keys such as kind, power"),
        ("encoders: {text: 3}", "r.yaml:2: encoders.text: got 3; expected a section with keys such as kind, power, or null"),
        ("train: {epochs: true}", "r.yaml:2: train.epochs: got true; expected a whole number"),
        ("train: {epochs: 1e1}", "r.yaml:2: train.epochs: got 10.0; expected a whole number (write 10)"),
        ("train: {epochs: '3'}", 'r.yaml:2: train.epochs: got "3"; expected a whole number'),
        ("train: {epochs: 0}", "r.yaml:2: train.epochs: got 0; expected at least 1"),
        ("train: {lr: yes}", 'r.yaml:2: train.lr: got "yes"; expected a number'),
        ("train: {lr: 0}", "r.yaml:2: train.lr: got 0; expected more than 0"),
        ("train: {lr: .nan}", "r.yaml:2: train.lr: got nan; expected a finite number"),
        ("train: {lr: 1e3}", "r.yaml:2: train.lr: got 1000.0; expected at most 10"),
        ("train: {val_fraction: 1}", "r.yaml:2: train.val_fraction: got 1; expected less than 1"),
        ("train: {grad_clip: x}", 'r.yaml:2: train.grad_clip: got "x"; expected a number, or null'),
        ("train: {pairwise_only: on}", 'r.yaml:2: train.pairwise_only: got "on"; expected true or false'),
        ("train: {device: gpu}", 'r.yaml:2: train.device: got "gpu"; expected one of: auto, cpu, cuda, mps; did you mean cpu?'),
        ("train: {device: 3}", "r.yaml:2: train.device: got 3; expected one of: auto, cpu, cuda, mps"),
        ("train: {split: 2014}", "r.yaml:2: train.split: got 2014; expected text (put it in quotes)"),
        ("train: {split: ../x}", 'r.yaml:2: train.split: got "../x"; expected only letters, digits, _ - and . (and no . at the start)'),
        ("run_dir: 3", "r.yaml:2: run_dir: got 3; expected a path (put it in quotes), or null"),
        ("run_dir: ''", 'r.yaml:2: run_dir: got ""; expected a path'),
        ("run_dir: ~no_such_user/x", 'r.yaml:2: run_dir: got "~no_such_user/x"; the home folder of that user is not known'),
        ("data: {manifest: a/b}", 'r.yaml:2: data.manifest: got "a/b"; expected the name of a shipped manifest, or a path that ends in .yaml'),
        ("eval_retrieval: {ks: 3}", "r.yaml:2: eval_retrieval.ks: got 3; expected a list, as in [1, 5]"),
        ("eval_retrieval: {ks: []}", "r.yaml:2: eval_retrieval.ks: got []; expected at least 1 value(s)"),
        ("eval_retrieval:\n  ks:\n  - 1\n  - 0", "r.yaml:5: eval_retrieval.ks.1: got 0; expected at least 1"),
        ("encoders: {image: {kind: openclip}}", 'r.yaml:2: encoders.image.kind: got "openclip"; expected one of: features, open_clip, transformers, sentence_transformers, timm; did you mean open_clip?'),
        ("encoders: {image: {kind: [1]}}", "r.yaml:2: encoders.image.kind: got [1]; expected one of: features, open_clip, transformers, sentence_transformers, timm"),
        ("encoders: {image: {kind: null}}", "r.yaml:2: encoders.image.kind: got null; expected one of: features, open_clip, transformers, sentence_transformers, timm"),
        ("train: {objective: {pairwise: {kind: sigmoid}}}", 'r.yaml:2: train.objective.pairwise.kind: got "sigmoid"; expected one of: infonce, siglip, align_uniform, l2_contrastive; did you mean siglip?'),
        ("train: {objective: {divergence: {kind: mdm}}}", 'r.yaml:2: train.objective.divergence.kind: got "mdm"; expected one of: cs, mmd, energy, hoelder, generalized_cs, gaussian_kl, jeffreys, frechet, coral, sliced_wasserstein, sinkhorn; did you mean mmd?'),
        ("train: {objective: {divergence: {bandwidth: []}}}", "r.yaml:2: train.objective.divergence.bandwidth: got []; a mixture needs at least one sigma, as in [0.5, 1.0]"),
        ("train: {objective: {divergence: {bandwidth: 1.0e+200}}}", "r.yaml:2: train.objective.divergence.bandwidth: got 1e+200; expected a sigma from 1e-09 to 1e+09"),
        ("encoders: {further: {a/b: {kind: features}}}", 'r.yaml:2: encoders.further.a/b: got "a/b"; expected only letters, digits, _ - and . (and no . at the start)'),
        ("train: {objective: {divergence: {bandwidth: [1, 1.0e+10]}}}", "r.yaml:2: train.objective.divergence.bandwidth: got [1, 10000000000.0]; expected sigmas from 1e-09 to 1e+09 in a mixture"),
        ("train: {objective: {divergence: {bandwidth: [1, x]}}}", 'r.yaml:2: train.objective.divergence.bandwidth: got [1, "x"]; expected numbers more than 0 in a mixture, as in [0.5, 1.0]'),
        ("train: {objective: {divergence: {bandwidth: {kind: medain}}}}", 'r.yaml:2: train.objective.divergence.bandwidth.kind: got "medain"; expected one of: median, auto, annealed; did you mean median?'),
        ("train: {objective: {divergence: {weight: -1}}}", "r.yaml:2: train.objective.divergence.weight: got -1; expected a number of at least 0, or a section of kind scheduled or relative"),
        ("train: {objective: {divergence: {weight: {begin: 0.5, until: 0.2}}}}", "r.yaml:2: train.objective.divergence.weight: begin (0.5) must lie before until (0.2)"),
        ("train: {objective: {divergence: {shrinkage: 0.2}}}", "r.yaml:2: train.objective.divergence.shrinkage: unknown key of kind cs; it belongs to kind gaussian_kl or jeffreys or frechet"),
        ("train: {objective: {divergence: {estimator: u, approximation: {kind: nystroem}}}}", "r.yaml:2: train.objective.divergence: approximation goes with estimator: v and products: fp32"),
        ("train: {objective: {pairwise: {weight: 0}, divergence: {weight: {kind: relative}}}}", "r.yaml:2: train.objective: divergence.weight is relative to the pairwise term, whose weight is 0"),
        ("train: {objective: {pairwise: {weight: 0}, divergence: {weight: 0}}}", "r.yaml:2: train.objective: pairwise.weight is 0, and so is every other weight: nothing would be trained"),
        ("train: {objective: {pairwise: {weight: 0}, divergence: {weight: 0}, structure: {weight: 0}}}", "r.yaml:2: train.objective: pairwise.weight is 0, and so is every other weight: nothing would be trained"),
        ("train: {objective: {pairwise: {weight: 0}}, pairwise_only: true}", "r.yaml:2: train: pairwise_only trains on objective.pairwise alone, whose weight is 0; use pairwise_only: false"),
        *(
            (f"train: {{objective: {{divergence: {{bandwidth: {given}}}}}}}", f"r.yaml:2: train.objective.divergence.bandwidth: got {given_text}; expected a number more than 0 (sigma), a list of them, median, auto, or a section with a kind")
            for given, given_text in [("meadian", '"meadian"'), ("0", "0"), ("true", "true"), ("null", "null"), (".inf", "inf"), (".nan", "nan")]
        ),
        ("encoders: {image: {kind: open_clip}}", "r.yaml:2: encoders.image: give exactly one of model and config"),
        ("encoders: {image: {kind: open_clip, model: ViT-B-32}}", "r.yaml:2: encoders.image: say where the weights come from: either pretrained (a tag or a file) or random_init: true"),
        ("encoders: {image: {kind: open_clip, model: hf-hub:a/b, pretrained: x}}", "r.yaml:2: encoders.image: a model from local-dir: or hf-hub: brings its weights; drop pretrained and random_init"),
        ("encoders: {image: {kind: open_clip, random_init: true, config: {vision_cfg: {width: 100}}}}", "r.yaml:2: encoders.image.config.vision_cfg: head_width (32) must divide width (100)"),
        ("encoders: {image: {kind: open_clip, random_init: true, config: {vision_cfg: {patch_size: 7}}}}", "r.yaml:2: encoders.image.config.vision_cfg: patch_size (7) must divide image_size (64)"),
        *(
            (f"encoders: {{image: {{kind: open_clip, random_init: true, config: {{vision_cfg: {{layers: {given}}}}}}}}}", f"r.yaml:2: encoders.image.config.vision_cfg.layers: got {given}; expected a number from 1 to 200, or a list of four: the blocks of a ResNet's stages")
            for given in ("0", "[1, 1]", "[1, 1, 1, 0]", "true")
        ),
        ("encoders: {image: {kind: open_clip, random_init: true, config: {vision_cfg: {layers: [1, 1, 1, 1], image_size: 48}}}}", "r.yaml:2: encoders.image.config.vision_cfg: image_size (48): a ResNet's must be a multiple of 32"),
        ("encoders: {image: {kind: open_clip, random_init: true, config: {vision_cfg: {layers: [1, 1, 1, 1], head_width: 48}}}}", "r.yaml:2: encoders.image.config.vision_cfg: head_width (48) must divide 32 times width (128) of a ResNet"),
        ("encoders: {image: {kind: open_clip, random_init: true, config: {text_cfg: {heads: 7}}}}", "r.yaml:2: encoders.image.config.text_cfg: heads (7) must divide width (128)"),
        ("train: {image: {tune: frozen}, text: {tune: frozen}}", "r.yaml:2: train: image.tune and text.tune are both frozen, so nothing would be trained (train: null skips it)"),
        ("train:\n  epochs: 4\n  self_training: {first_epoch: 2}", "r.yaml:4: train.self_training: without data.unpaired there are no unpaired items; data.unpaired: {} takes what is unpaired by itself"),
        ("train:\n  epochs: 4\n  edges: [[image]]", "r.yaml:4: train.edges: expected pairs of two modalities, as in [image, text]; got ['image']"),
        ("zero_shot:\n  shots: [1]\n  classes: x.txt\n  shots_split: test", "r.yaml:5: zero_shot.shots_split: 'test' is the split that is classified"),
        ("generate:\n  split: test\n  stores: [frozne]", "r.yaml:4: generate: stores: 'frozne' is no store; expected frozen, pairwise_only, aligned, frozen+mean_shift, frozen+ridge"),
        ("train:\n  epochs: 4\n  image: {tune: frozen}\n  text: {tune: frozen}", "r.yaml:4: train: image.tune and text.tune are both frozen, so nothing would be trained (train: null skips it)"),
        ("train: {objective: {pairwise: {logit_scale: {init: 200}}}}", "r.yaml:2: train.objective.pairwise.logit_scale: init (200) must not exceed max (100)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_reported_with_key_line_value_and_what_is_expected(text: str, message: str) -> None:
    assert refusal(f"name: x\n{text}") == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1", "r.yaml:2: lr: unknown key; did you mean train.lr or train.matching.lr or generate.train_decoder.lr?"),
        ("split: x", "r.yaml:2: split: unknown key; did you mean train.split or eval_retrieval.split or eval_retrieval.query_bank.split?"),
        ("train: {bandwidth: 1}", "r.yaml:2: train.bandwidth: unknown key; did you mean train.objective.divergence.bandwidth or train.objective.tokens.bandwidth?"),
        ("train: {logit_scale: {}}", "r.yaml:2: train.logit_scale: unknown key; did you mean train.objective.pairwise.logit_scale?"),
        ("data: {epoch: 1}", "r.yaml:2: data.epoch: unknown key; did you mean train.epochs or train.matching.epochs?"),
        ("embed: {weight: 1}", "r.yaml:2: embed.weight: unknown key; did you mean embed.weights or train.objective.pairwise.weight or train.objective.divergence.weight?"),
        ("train: {image: {adapter: {kind: linear, hidden_dim: 3}}}", "r.yaml:2: train.image.adapter.hidden_dim: unknown key of kind linear; it belongs to kind residual_mlp or bottleneck"),
        ("encoders: {text: {model: x}}", "r.yaml:2: encoders.text.model: unknown key of kind features; it belongs to kind open_clip or transformers or sentence_transformers or timm"),
        ("encoders: {text: {knd: open_clip, model: x, pretrained: y}}", "r.yaml:2: encoders.text.knd: unknown key; did you mean encoders.text.kind?"),
        ("zebra: 1", "r.yaml:2: zebra: unknown key; expected one of: data, distributed, embed, encoders, eval_retrieval, expected, gap_report, generate, name, prepare, run_dir, seed, sweep, train, version, zero_shot"),
        ("3: 1", "r.yaml:2: 3: unknown key; expected one of: data, distributed, embed, encoders, eval_retrieval, expected, gap_report, generate, name, prepare, run_dir, seed, sweep, train, version, zero_shot"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_led_to_where_it_belongs(text: str, message: str) -> None:
    assert refusal(f"name: x\n{text}") == message


def test_all_problems_come_in_one_report() -> None:
    text = "nmae: x\nseed: -1\ntrain:\n  epochs: many\n  objective:\n    divergence: {weigth: 1, bandwidth: no}\n"
    first, *problems = refusal(text, "eval_retrieval.ks=[1,x,0]", "train.lrr=1").splitlines()
    assert first == "r.yaml has 9 problems:"
    assert sorted(problems) == sorted(
        [
            "  r.yaml: name: this key is required, and is missing",
            "  r.yaml:1: nmae: unknown key; did you mean name?",
            "  r.yaml:2: seed: got -1; expected at least 0",
            '  r.yaml:4: train.epochs: got "many"; expected a whole number',
            "  r.yaml:6: train.objective.divergence.weigth: unknown key; did you mean "
            "train.objective.divergence.weight?",
            '  r.yaml:6: train.objective.divergence.bandwidth: got "no"; expected a number more than 0 '
            "(sigma), a list of them, median, auto, or a section with a kind",
            "  --set: train.lrr: unknown key; did you mean train.lr?",
            '  --set: eval_retrieval.ks.1: got "x"; expected a whole number',
            "  --set: eval_retrieval.ks.2: got 0; expected at least 1",
        ]
    )


def test_a_check_across_keys_says_where_the_key_that_it_names_was_given() -> None:
    text = "name: x\nzero_shot:\n  shots: [1]\n  classes: x.txt\n"
    about = "zero_shot.shots_split: 'train' is the split that is classified"
    assert refusal(text, "zero_shot.shots_split=train", "zero_shot.split=train") == f"--set: {about}"
    assert refusal(text + "  shots_split: train", "zero_shot.split=train") == f"r.yaml:5: {about}"
    assert refusal(text, "zero_shot.split=train") == f"--set: {about}", (
        "a default, and what was set brought them together"
    )
    assert refusal(text + "  split: train") == f"r.yaml:2: {about}", "a default: the section"


def test_what_the_file_does_not_say_has_a_default_and_null_skips_training() -> None:
    assert loaded("name: x") == Recipe(name="x")
    assert loaded("name: x").trains
    assert loaded("name: x\ntrain: null").train is None
    assert not loaded("name: x\ntrain: null").trains
    assert refusal("") == "r.yaml: name: this key is required, and is missing"


# --set


def test_set_is_merged_before_validation_and_typed_by_the_schema() -> None:
    recipe = loaded(
        "name: x\ntrain: {lr: 0.1, epochs: 3}",
        "name=2024",
        "train.lr=1e-3",
        "train.split=1e-3",
        "run_dir=7",
        "data.root=null",
        "eval_retrieval.ks=[2,4]",
        "train.objective.divergence.bandwidth=median",
        "train.text.adapter={kind: linear}",
        "train.val_split = dev",
        "train.grad_clip=null",
    )
    assert recipe.train is not None
    assert (recipe.name, recipe.train.lr, recipe.train.epochs) == ("2024", 0.001, 3)
    assert (recipe.train.split, recipe.train.val_split, recipe.train.grad_clip) == ("1e-3", "dev", None)
    assert (recipe.run_dir, recipe.data.root) == (Path("7").resolve(), None)
    assert recipe.eval_retrieval.ks == [2, 4]
    assert recipe.train.objective.divergence.bandwidth == "median"
    assert recipe.train.text.adapter.kind == "linear"


def test_the_last_set_of_a_key_wins_and_the_order_counts() -> None:
    train = loaded("name: x", "train.lr=1", "train={epochs: 2}", "train.lr=2", "seed=1", "seed=2").train
    assert train is not None
    assert (train.lr, train.epochs) == (2, 2)
    assert loaded("name: x", "train.lr=1", "train=null").train is None
    revived = loaded("name: x\ntrain: null", "train.lr=0.5").train
    assert revived is not None and revived.lr == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected key.path=value, for example --set train.lr=1e-3"),
        ("=3", "--set =3: expected key.path=value, for example --set train.lr=1e-3"),
        ("a..b=3", "--set a..b=3: expected key.path=value, for example --set train.lr=1e-3"),
        (".=3", "--set .=3: expected key.path=value, for example --set train.lr=1e-3"),
        (" =3", "--set  =3: expected key.path=value, for example --set train.lr=1e-3"),
        ("", "--set : expected key.path=value, for example --set train.lr=1e-3"),
        ("name.x=1", '--set name.x: name is "x" here, and has no keys of its own'),
        ("eval_retrieval.ks.0=3", "--set eval_retrieval.ks.0: eval_retrieval.ks is [1, 5] here, and has no keys of its own"),
        ("gap_report.bandwidths.0=3", "--set: gap_report.bandwidths: got a section; expected a list, as in [1, 5]"),
        ("run_dir.x=1", "--set: run_dir: got a section; expected a path, or null"),
        ("seed=", '--set: seed: got ""; expected a whole number'),
        ("seed=[1", '--set: seed: got "[1"; expected a whole number'),
        ("seed=true", "--set: seed: got true; expected a whole number"),
        ("run_dir=", '--set: run_dir: got ""; expected a path'),
        ("train={lr: x}", '--set: train.lr: got "x"; expected a number'),
        ("train={lr: 1, lr: 2}", "--set train={lr: 1, lr: 2}:1: the key lr was already given on line 1"),
        ("train={split: 3}", "--set: train.split: got 3; expected text (put it in quotes)"),
        ("train.objective.pairwise.logit_scale.init=200", "--set: train.objective.pairwise.logit_scale: init (200) must not exceed max (100)"),
    ],
)  # fmt: skip
def test_a_wrong_set_is_reported_as_such(override: str, message: str) -> None:
    assert refusal("name: x\neval_retrieval: {ks: [1, 5]}", override) == message


def test_aliased_sections_are_set_one_by_one() -> None:
    text = "name: x\ntrain: {image: &t {adapter: {hidden_dim: 8}}, text: *t}"
    train = loaded(text, "train.image.adapter.hidden_dim=16").train
    assert train is not None
    assert (train.image.adapter.hidden_dim, train.text.adapter.hidden_dim) == (16, 8)  # type: ignore[union-attr]


# Paths and names


def test_paths_are_relative_to_the_file_that_states_them_and_with_set_to_the_current_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "sub").mkdir()
    encoders = "encoders: {image: {kind: open_clip, model: 'local-dir:m'}, text: {kind: open_clip, model: a, pretrained: w.pt}}"
    text = f"name: x\nrun_dir: r\ndata: {{root: ../d, manifest: m.yaml}}\nembed: {{weights: /w}}\n{encoders}\n"
    (tmp_path / "sub" / "r.yaml").write_text(text)
    by_file = load_recipe("sub/r.yaml")
    assert by_file.run_dir == tmp_path / "sub" / "r"
    assert (by_file.data.root, by_file.embed.weights) == (tmp_path / "d", Path("/w"))
    assert by_file.data.manifest == str(tmp_path / "sub" / "m.yaml")
    assert by_file.encoders.image.model == f"local-dir:{tmp_path}/sub/m"  # type: ignore[union-attr]
    assert by_file.encoders.text.pretrained == f"{tmp_path}/sub/w.pt"  # type: ignore[union-attr]
    by_set = load_recipe(
        "sub/r.yaml",
        [
            "run_dir=r",
            "data={root: ../d, manifest: m.yaml}",
            "embed.weights=~/w",
            "encoders.image.model=local-dir:m",
            "encoders.text.pretrained=w.pt",
        ],
    )
    assert by_set.run_dir == tmp_path / "r"
    assert (by_set.data.root, by_set.embed.weights) == (tmp_path.parent / "d", Path.home() / "w")
    assert by_set.data.manifest == str(tmp_path / "m.yaml")
    assert by_set.encoders.image.model == f"local-dir:{tmp_path}/m"  # type: ignore[union-attr]
    assert by_set.encoders.text.pretrained == f"{tmp_path}/w.pt"  # type: ignore[union-attr]


def test_the_run_directory_is_named_after_the_recipe_and_run_names_a_trained_model(tmp_path: Path) -> None:
    shared = "data: {dir: 'run:first/data'}\nembed: {dir: 'run:first/embeddings/frozen'}"
    recipe = loaded(f"name: x\nencoders: {{image: {{kind: open_clip, model: 'run:first'}}}}\n{shared}")
    assert recipe.folder == tmp_path / "runs" / "x"
    assert recipe.data.dir == tmp_path / "runs" / "first" / "data"
    assert recipe.embed.dir == tmp_path / "runs" / "first" / "embeddings" / "frozen"
    expected = exported_model(tmp_path / "runs" / "first")
    assert recipe.encoders.image.model == f"local-dir:{expected}"  # type: ignore[union-attr]


def test_the_recipe_is_an_argument_or_a_variable_or_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe()
    assert str(caught.value) == (
        "no recipe is named, $CSALIGN_RECIPE is not set, and there is no recipe.yaml here\n"
        f"Name a file or one of: {', '.join(shelf.names('recipes'))}"
    )
    (tmp_path / "recipe.yaml").write_text("name: default")
    assert load_recipe().name == "default"
    monkeypatch.setenv("CSALIGN_RECIPE", "scenes")
    assert load_recipe().name == "scenes"
    assert load_recipe("flickr8k").name == "flickr8k"
    monkeypatch.setenv("CSALIGN_RECIPE", "absent.yaml")
    with pytest.raises(InputError, match=r"^\$CSALIGN_RECIPE: absent\.yaml: no such file"):
        load_recipe()


@pytest.mark.parametrize("name", shelf.names("recipes"))
def test_the_resolved_recipe_reads_back_equal_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(name, ["run_dir=here", "data.root=data"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("resolved.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe("resolved.yaml") == recipe


@pytest.mark.parametrize(
    "name", ["1e-3", "2024", "0x1f", "0o7", "on", "null", "true", "1_0", "2020-01-01", "-", "_.", "1.e5"]
)
def test_names_that_look_like_something_else_survive_being_written(name: str) -> None:
    recipe = load_recipe("scenes", [f"name={name}", f"train.split={name}"])
    assert recipe.name == name
    Path("resolved.yaml").write_text(recipe.to_yaml())
    assert load_recipe("resolved.yaml") == recipe


@pytest.mark.parametrize("name", [".", "..", ".hidden", "a/b", "a b", "", "a\nb", "ä"])
def test_names_that_are_no_plain_folder_name_are_refused(name: str) -> None:
    assert "name: got " in refusal(dump_yaml({"name": name}))


# Recipe and manifest together


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.manifest=sceness"], "data.manifest: sceness: no such file, and no shipped manifest of that name; did you mean scenes?"),
        (["data.manifest=missing.yaml"], "missing.yaml: no such file, and no shipped manifest of that name; those are: cc12m, cc3m, "),
        (["data.manifest=empty.yaml"], "empty.yaml: kind: this key is required, and is missing; expected one of: clip_retrieval, coco, conversations, embeddings, folder, karpathy, latent, mixbench, scenes, table, webdataset"),
        (["data.manifest=odd.yaml"], 'odd.yaml:2: kind: got "tabel"; did you mean table?'),
        (["data.manifest=folder.yaml"], "folder.yaml: is a folder, not a manifest file"),
        (["encoders={image: {kind: features}}"], "encoders.image: kind features needs a manifest of kind embeddings, but the manifest scenes is of kind scenes"),
        (["encoders.text={kind: features}"], "encoders.text: kind features needs a manifest of kind embeddings"),
        (["data.manifest=flickr8k"], "encoders.image: kind open_clip reads pictures, but the manifest flickr8k is of kind embeddings"),
        (["data.root=absent", "data.manifest=flickr8k_images"], "absent is not a folder"),
    ],
)  # fmt: skip
def test_validate_finds_what_is_wrong_with_the_manifest(
    overrides: list[str], message: str, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "odd.yaml").write_text("name: x\nkind: tabel")
    (tmp_path / "folder.yaml").mkdir()
    sets = [part for override in overrides for part in ("--set", override)]
    assert message in refused("recipe", "validate", "scenes", *sets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: {train: 0}", "m.yaml:3: images.train: got 0; expected at least 1"),
        ("images: {train: many}", 'm.yaml:3: images.train: got "many"; expected a whole number'),
        ("captions_per_image: 6", "m.yaml:3: captions_per_image: got 6; expected at most 5"),
        ("expected: {train: {imags: 1, captions: 2}}", "m.yaml:3: expected.train.imags: unknown key; did you mean expected.train.images?"),
        ("expected: {train: 3}", "m.yaml:3: expected.train: got 3; expected a section with keys such as images, captions"),
        ("expected: 3", "m.yaml:3: expected: got 3; expected a section"),
        ("table: x.csv", "m.yaml:3: table: unknown key"),
    ],
)  # fmt: skip
def test_problems_of_a_manifest_are_reported_like_those_of_a_recipe(text: str, message: str, refused: Refused) -> None:
    Path("m.yaml").write_text(f"name: x\nkind: scenes\n{text}")
    report = refused("recipe", "validate", "scenes", "--set", "data.manifest=m.yaml")
    assert message in report
    assert not INTERNALS.search(report)


# The schema


def _all_models() -> list[type[BaseModel]]:
    found: dict[type[BaseModel], None] = {}

    def walk(model: type[BaseModel]) -> None:
        found[model] = None
        for info in model.model_fields.values():
            for inner in _models_in(info.annotation):
                walk(inner)

    for model in (Recipe, *MANIFESTS.values()):
        walk(model)
    return list(found)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    yield from section_models(annotation)
    if typing.get_origin(annotation) in (dict, list):
        for argument in typing.get_args(annotation):
            yield from _models_in(argument)


_FIELDS = [
    pytest.param(info, id=f"{model.__name__}.{name}")
    for model in _all_models()
    for name, info in model.model_fields.items()
]


def _bounded(annotation: Any, metadata: list[Any]) -> bool:
    """Whether every number that an annotation allows has a bound."""
    if annotation in (int, float):
        given = [m for item in metadata for m in (getattr(item, "metadata", None) or [item])]
        return any(
            isinstance(m, annotated_types.Gt | annotated_types.Ge | annotated_types.Lt | annotated_types.Le)
            for m in given
        )
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        return _bounded(inner, [*metadata, *more])
    if typing.get_origin(annotation) is typing.Literal:
        return True
    return all(_bounded(argument, metadata) for argument in typing.get_args(annotation))


@pytest.mark.parametrize("info", _FIELDS)
def test_every_field_is_described_and_every_number_is_bounded(info: FieldInfo) -> None:
    assert info.description and len(info.description) > 3
    assert _bounded(info.annotation, info.metadata)


@pytest.mark.parametrize("model", _all_models(), ids=lambda model: model.__name__)
def test_every_section_is_described_and_its_defaults_are_valid(model: type[BaseModel]) -> None:
    assert model.__doc__ and model.__doc__.rstrip().endswith(".")
    if not any(info.is_required() for info in model.model_fields.values()) and model.__name__ != "OpenClipEncoder":
        assert model.model_validate({}) == model()


def _kinds(*path: str) -> set[str]:
    """The kinds that the schema allows at a key path of the recipe."""
    sections: list[type[BaseModel]] = [Recipe]
    for key in path:
        owners = [section for section in sections if key in section.model_fields]
        sections = [m for section in owners for m in section_models(section.model_fields[key].annotation)]
    return {kind for section in sections for kind in typing.get_args(section.model_fields["kind"].annotation)}


def test_the_tables_of_parts_hold_what_the_schema_allows() -> None:
    from cs_aligner_cli.data.sources import SOURCES
    from cs_aligner_cli.objectives.pseudo_pairs import POTENTIALS
    from cs_aligner_cli.objectives.structure import STRUCTURES
    from cs_aligner_cli.objectives.table import APPROXIMATIONS, DIVERGENCES, JOINT, PAIRWISE, UNPAIRED_NEGATIVES
    from cs_aligner_cli.towers.adapters import ADAPTERS

    assert set(PAIRWISE) == _kinds("train", "objective", "pairwise")
    assert {*DIVERGENCES, *JOINT} == _kinds("train", "objective", "divergence")
    assert set(APPROXIMATIONS) == _kinds("train", "objective", "divergence", "approximation")
    assert set(POTENTIALS) == _kinds("train", "objective", "pseudo_pairs")
    assert set(STRUCTURES) == _kinds("train", "objective", "structure")
    pairwise = section_models(Objective.model_fields["pairwise"].annotation)
    taking = {m.model_fields["kind"].default for m in pairwise if "unpaired_negatives" in m.model_fields}
    assert set(UNPAIRED_NEGATIVES) == taking
    assert set(ADAPTERS) == _kinds("train", "image", "adapter")
    assert set(SOURCES) == set(MANIFESTS)
    for kind, model in MANIFESTS.items():
        assert typing.get_args(model.model_fields["kind"].annotation) == (kind,)
        assert model.model_fields["kind"].default == kind


def test_the_shipped_schema_is_up_to_date(csalign: Callable[..., Any]) -> None:
    text = (shelf.folder("recipes") / shelf.RECIPE_SCHEMA).read_text(encoding="utf-8")
    assert text == csalign("recipe", "schema").stdout, "run csalign recipe schema > recipes/recipe.schema.json"
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


@pytest.mark.parametrize("name", shelf.names("recipes"))
def test_the_schema_takes_every_shipped_recipe_and_no_misspelt_key(
    name: str, schema: jsonschema.Draft202012Validator
) -> None:
    data = read_yaml(shelf.find("recipes", name)).data
    schema.validate(data)
    schema.validate(json.loads(load_recipe(name).model_dump_json()))
    for path in _schema_leaves(data):
        assert not schema.is_valid(renamed(data, path, misspellings(path[-1])[0])), path


@pytest.mark.parametrize("section", ["encoders.image", "encoders.text", "train.image.adapter", "train.text.adapter"])
def test_the_schema_agrees_on_which_kind_is_meant_where_none_is_named(
    section: str, schema: jsonschema.Draft202012Validator
) -> None:
    empty = nested(tuple(section.split(".")), {})
    schema.validate({"name": "x", **empty})
    assert loaded(dump_yaml({"name": "x", **empty}))


def test_a_dict_in_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"name": "x", "data": {"root": "photos"}, "train": {"epochs": 3}}
    recipe = load_recipe(content, ["train.lr=0.01"])
    assert recipe.train is not None
    assert (recipe.train.epochs, recipe.train.lr, recipe.data.root) == (3, 0.01, tmp_path / "photos")
    assert content == {"name": "x", "data": {"root": "photos"}, "train": {"epochs": 3}}
    with pytest.raises(InputError, match=r"recipe.*train\.epoch.*did you mean"):
        load_recipe({"name": "x", "train": {"epoch": 3}})
    with pytest.raises(InputError, match=r"overrides: expected a list, got 'train\.lr=0\.01' alone"):
        load_recipe(content, "train.lr=0.01")


def test_a_dict_may_hold_numbers_of_numpy_and_tuples() -> None:
    ks, train = (1, np.int64(5)), {"batch_size": np.int32(8), "lr": np.float64(0.01), "pairwise_only": np.True_}
    recipe = load_recipe({"name": "x", "seed": np.arange(4)[3], "train": train, "eval_retrieval": {"ks": ks}})
    assert recipe.train is not None
    assert (recipe.seed, recipe.train.batch_size, recipe.train.lr, recipe.train.pairwise_only) == (3, 8, 0.01, True)
    assert recipe.eval_retrieval.ks == [1, 5] and load_recipe({"name": "x"}, settings={"seed": np.int64(4)}).seed == 4
