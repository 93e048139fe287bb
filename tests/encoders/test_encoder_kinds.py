"""Every encoder kind gives what its own library gives, on small models saved and loaded in the real formats."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import timm
import torch
import transformers
from open_clip.transformer import TextTransformer
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.token_sequences import token_mask
from cs_aligner_cli.data.caption_lengths import by_words
from cs_aligner_cli.encoders import Encoder, load_encoders
from cs_aligner_cli.encoders.hub import same_encoder
from cs_aligner_cli.encoders.open_clip_text import CaptionIds
from cs_aligner_cli.encoders.tokens import OpenClipImageTokens
from cs_aligner_cli.encoders.transformers import pool
from cs_aligner_cli.recipe.recipe import Recipe

Csalign = Callable[..., Any]
CAPTIONS = ["a red square", "two dogs , playing in the snow near a tall tree", "snow", "a dog", "tall red dogs"]
WORDS = sorted({word for caption in CAPTIONS for word in caption.split()})


class Data:
    """As much of a prepared data set as an encoder looks at."""

    def __init__(self, root: Path) -> None:
        self.root = root


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, size in zip(paths, ((40, 50), (64, 32), (33, 90)), strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return paths


def encoder(modality: str, root: Path, **content: Any) -> Encoder:
    other = {"kind": "open_clip", "random_init": True, "config": {}}
    encoders = {"image": other, "text": other, modality: content}
    recipe = Recipe.model_validate({"name": "x", "encoders": encoders})
    return load_encoders(recipe, Data(root), torch.device("cpu"), [modality])[modality]  # type: ignore[arg-type]


@torch.inference_mode()
def embedded(found: Encoder, photos: list[Path] | None = None) -> Tensor:
    table = pd.DataFrame({"text": CAPTIONS} if photos is None else {"locator": [path.name for path in photos]})
    output: Tensor = found.module(found.load(table))
    assert output.shape == (len(table), found.dim)
    return output


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs.float(), atol=1e-5, rtol=1e-5)
    assert torch.cdist(ours.float(), ours.float()).fill_diagonal_(1).min() > 1e-4, "no two rows alike"


def word_tokenizer(**special: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of whole words, with BERT's special tokens around them."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if special.get("cls_token"):
        template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        tokenizer.post_processor = template  # type: ignore[assignment]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)


BERT_SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=4 + len(WORDS), max_position_embeddings=16, **SMALL)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    word_tokenizer(**BERT_SPECIAL).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=4 + len(WORDS), max_position_embeddings=64, **SMALL)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    word_tokenizer(eos_token="[SEP]").save_pretrained(tmp_path / "llama")  # no padding token, as LLMs have none
    return tmp_path / "llama"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 4 + len(WORDS), "max_position_embeddings": 16, "eos_token_id": 3, **SMALL},
        vision_config={"image_size": 32, "patch_size": 16, **SMALL},
        projection_dim=24,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    word_tokenizer(**BERT_SPECIAL).save_pretrained(tmp_path / "clip")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**size).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.SiglipConfig(
        text_config={"vocab_size": 4 + len(WORDS), "max_position_embeddings": 16, **SMALL},
        vision_config={"image_size": 32, "patch_size": 16, **SMALL},
    )
    transformers.SiglipModel(config).save_pretrained(tmp_path / "siglip")
    word_tokenizer(**BERT_SPECIAL).save_pretrained(tmp_path / "siglip")
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "siglip")
    return tmp_path / "siglip"


def of(folder: Path) -> str:
    return f"local-dir:{folder}"


# ---- parity


@torch.inference_mode()
def test_bert_with_every_pooling_equals_the_library_one_caption_at_a_time(bert: Path, tmp_path: Path) -> None:
    model, tokenizer = transformers.BertModel.from_pretrained(bert).eval(), word_tokenizer(**BERT_SPECIAL)
    alone = [model(**tokenizer(caption, return_tensors="pt", truncation=True, max_length=16)) for caption in CAPTIONS]
    expected = {
        "mean": [output.last_hidden_state[0].mean(0) for output in alone],
        "cls": [output.last_hidden_state[0, 0] for output in alone],
        "last": [output.last_hidden_state[0, -1] for output in alone],
        "pooler": [output.pooler_output[0] for output in alone],
    }
    for pooling, rows in expected.items():
        found = encoder("text", tmp_path, kind="transformers", model=of(bert), pooling=pooling)
        assert_same(embedded(found), torch.stack(rows))
    auto = encoder("text", tmp_path, kind="transformers", model=of(bert))
    assert auto.identity["pooling"] == "mean"
    assert auto.identity["max_length"] == 16


@torch.inference_mode()
def test_a_decoder_llm_gives_its_last_token_under_a_prompt(llama: Path, tmp_path: Path) -> None:
    model, tokenizer = transformers.LlamaModel.from_pretrained(llama).eval(), word_tokenizer(eos_token="[SEP]")
    prompt = "a {text} snow"
    found = encoder("text", tmp_path, kind="transformers", model=of(llama), prompt=prompt)
    assert found.identity["pooling"] == "last"
    alone = [model(**tokenizer(f"a {caption} snow", return_tensors="pt")) for caption in CAPTIONS]
    assert_same(embedded(found), torch.stack([output.last_hidden_state[0, -1] for output in alone]))
    mean = encoder("text", tmp_path, kind="transformers", model=of(llama), prompt=prompt, pooling="mean")
    assert_same(embedded(mean), torch.stack([output.last_hidden_state[0].mean(0) for output in alone]))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_both_towers_of_clip_and_siglip_equal_the_librarys_features(
    name: str, photos: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    options = {"padding": "max_length", "return_attention_mask": False} if name == "siglip" else {"padding": True}
    tokens = tokenizer(CAPTIONS, truncation=True, max_length=16, return_tensors="pt", **options)
    tokens.pop("token_type_ids", None)
    text = model.get_text_features(**tokens).pooler_output
    assert_same(embedded(encoder("text", tmp_path, kind="transformers", model=of(folder))), text)
    pixels = processor([Image.open(path).convert("RGB") for path in photos], return_tensors="pt")
    image = model.get_image_features(**pixels).pooler_output
    found = encoder("image", tmp_path, kind="transformers", model=of(folder))
    assert_same(embedded(found, photos), image)
    names = [name for name, _ in found.module.named_parameters()]
    assert names and not any("text" in name or "logit" in name for name in names), "one tower holds the other's weights"


@torch.inference_mode()
def test_dinov2_gives_its_pooled_output_and_other_poolings(photos: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_mean=[0.1] * 3, image_std=[0.7] * 3
    )
    processor.save_pretrained(tmp_path / "dino")
    output = model(**processor([Image.open(path).convert("RGB") for path in photos], return_tensors="pt"))
    expected = {"auto": output.pooler_output, "mean": output.last_hidden_state.mean(1)}
    for pooling, values in expected.items():
        found = encoder("image", tmp_path, kind="transformers", model=of(tmp_path / "dino"), pooling=pooling)
        assert_same(embedded(found, photos), values)


def test_a_sentence_transformers_pipeline_equals_its_own_encode(bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = [modules.Transformer(str(bert)), modules.Pooling(32, "mean"), modules.Dense(32, 20), modules.Normalize()]
    pipeline = SentenceTransformer(
        modules=parts, prompts={"query": "snow a "}, default_prompt_name="query", device="cpu"
    )
    pipeline.save(str(tmp_path / "pipeline"))
    again = SentenceTransformer(str(tmp_path / "pipeline"), device="cpu")
    found = encoder("text", tmp_path, kind="sentence_transformers", model=of(tmp_path / "pipeline"))
    assert found.dim == 20
    assert_same(embedded(found), torch.from_numpy(again.encode(CAPTIONS)))
    bare = encoder("text", tmp_path, kind="sentence_transformers", model=of(tmp_path / "pipeline"), prompt="{text}")
    assert_same(embedded(bare), torch.from_numpy(again.encode(CAPTIONS, prompt="")))


@torch.inference_mode()
def test_a_pipeline_leaves_its_prompt_out_of_the_pooling_where_it_says_so(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    parts = [modules.Transformer(str(bert)), modules.Pooling(32, "mean", include_prompt=False)]
    prompts = {"query": "snow a "}
    SentenceTransformer(modules=parts, prompts=prompts, default_prompt_name="query", device="cpu").save(str(folder))
    again = SentenceTransformer(str(folder), device="cpu")
    found = encoder("text", tmp_path, kind="sentence_transformers", model=of(folder))
    assert_same(embedded(found), torch.from_numpy(again.encode(CAPTIONS)))
    bare = encoder("text", tmp_path, kind="sentence_transformers", model=of(folder), prompt="{text}")
    assert_same(embedded(bare), torch.from_numpy(again.encode(CAPTIONS, prompt="")))
    assert not same_encoder(found.identity, bare.identity)
    last = encoder("text", tmp_path, kind="sentence_transformers", model=of(folder), layers=[-2, -1])
    assert_same(embedded(last)[:, 32:] * 2**0.5, torch.nn.functional.normalize(embedded(found), dim=1))
    inner = encoder("text", tmp_path, kind="sentence_transformers", model=of(folder), layers=[1])
    again.transformers_model.config.output_hidden_states = True
    features = again.preprocess(CAPTIONS[:1], prompt=prompts["query"])
    state = again[0](features)["all_layer_embeddings"][1][0, features["prompt_length"] :]
    torch.testing.assert_close(embedded(inner)[0], state.mean(0), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_tokenizers_without_a_padding_token(llama: Path, tmp_path: Path) -> None:
    pipeline = SentenceTransformer(modules=[modules.Transformer(str(llama)), modules.Pooling(32, "mean")], device="cpu")
    pipeline.save(str(tmp_path / "pipeline"))
    found = encoder("text", tmp_path, kind="sentence_transformers", model=of(tmp_path / "pipeline"))
    model, tokenizer = transformers.LlamaModel.from_pretrained(llama).eval(), word_tokenizer(eos_token="[SEP]")
    alone = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in CAPTIONS]
    assert_same(embedded(found), torch.stack(alone))

    word_tokenizer().save_pretrained(llama)
    word_tokenizer().save_pretrained(tmp_path / "pipeline")
    for kind, folder in (("transformers", llama), ("sentence_transformers", tmp_path / "pipeline")):
        with pytest.raises(InputError, match=r"encoders\.text: the tokenizer has no padding token and no end of text"):
            encoder("text", tmp_path, kind=kind, model=of(folder))


@torch.inference_mode()
def test_a_pipeline_that_pads_on_the_left_equals_its_own_encode(llama: Path, tmp_path: Path) -> None:
    """As those over LLMs do (e5-mistral), in batches that mix lengths."""
    folder = tmp_path / "pipeline"
    tokens = {"padding_side": "left", "pad_token": "[PAD]"}
    parts = [modules.Transformer(str(llama), processor_kwargs=tokens), modules.Pooling(32, "lasttoken")]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder))
    again = SentenceTransformer(str(folder), device="cpu")
    assert again.tokenizer.padding_side == "left"
    rng = np.random.default_rng(0)
    texts = [*dict.fromkeys(" ".join(rng.choice(WORDS, n)) for n in rng.integers(1, 12, 150))]
    found = encoder("text", tmp_path, kind="sentence_transformers", model=of(folder))
    assert_same(found.module(found.load(pd.DataFrame({"text": texts}))), torch.from_numpy(again.encode(texts)))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_timm_models_equal_timm_with_its_own_transform(name: str, photos: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    expected = model(torch.stack([transform(Image.open(path).convert("RGB")) for path in photos]))
    found = encoder("image", tmp_path, kind="timm", model=name, checkpoint=str(tmp_path / "weights.pth"))
    assert_same(embedded(found, photos), expected)
    timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    again = encoder("image", tmp_path, kind="timm", model=of(tmp_path / "saved"))
    assert_same(embedded(again, photos), expected)
    assert same_encoder(found.identity, again.identity)


def test_pooling_by_a_double_loop() -> None:
    hidden, lengths = torch.randn(3, 5, 4, dtype=torch.float64), [5, 1, 3]
    mask = torch.tensor([[int(i < n) for i in range(5)] for n in lengths])
    output = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=hidden)
    for b, n in enumerate(lengths):
        for d in range(4):
            mean = sum(float(hidden[b, i, d]) for i in range(n)) / n
            assert float(pool(output, "mean", mask)[b, d]) == pytest.approx(mean)
            assert float(pool(output, "last", mask)[b, d]) == float(hidden[b, n - 1, d])


def test_a_mixed_batch_is_computed_without_its_padding_and_in_order(bert: Path, tmp_path: Path) -> None:
    found = encoder("text", tmp_path, kind="transformers", model=of(bert))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, n)) for n in rng.integers(1, 12, 150)]
    ids = found.load(pd.DataFrame({"text": texts}))
    seen: list[torch.Size] = []
    found.backbone.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    together = found.module(ids)
    assert len(seen) == 3 and sum(rows * length for rows, length in seen) < 0.8 * ids.numel()
    parameters = list(found.module.parameters())[:4]
    gradients = torch.autograd.grad(together.square().sum(), parameters)
    alone = torch.cat([found.module(ids[i : i + 1]) for i in range(150)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad(alone.square().sum(), parameters), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "cuts, options",
    [
        (True, {}),
        (True, {"pool_type": "eos", "eos_id": 49407}),
        (False, {"pool_type": "last"}),
        (False, {"no_causal_mask": True}),
        (False, {"embed_cls": True}),
    ],
)
def test_open_clip_computes_captions_no_further_than_they_go(cuts: bool, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    tower = TextTransformer(context_length=16, width=24, heads=2, layers=2, output_dim=8, **options).double()
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    read = CaptionIds(tower, tokenizer)
    texts = ["a dog", "a dog! on a red, red mat", "", "a cat " * 30, "a dog"]
    parameters = [*tower.transformer.parameters()]
    for some in (texts[:3], texts):  # the second time most of them are known
        ids = read(some)
        longest = max(min(len(tokenizer.encode(text)) + 2, 16) for text in some)
        assert ids.shape == (len(some), longest if cuts else 16)
        ours, theirs = tower(ids), tower(tokenizer(some))
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
        gradients = [torch.autograd.grad(found.square().sum(), parameters) for found in (ours, theirs)]
        torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_captions_are_tokenised_word_by_word_to_the_same_ids(clean: str) -> None:
    encode = open_clip.SimpleTokenizer(clean=clean).encode
    read = by_words(encode)
    draw, marks = random.Random(0), "aBc 's'RE01_-<>.,!\"#()*/:;[]^`{|}~\\ <start_of_text> x\t\n\x1c&;"
    texts = ["It's two_dogs&nbsp;here", "", " ", "caf\u00e9 \u2019s", "a&amp;b", "<END_of_text> end", "they'llgo 12x3"]
    texts += ["".join(draw.choices(marks, k=draw.randint(1, 25))) for _ in range(300)]
    assert [read(text) for text in texts] == [encode(text) for text in texts]


# ---- tokens


@torch.inference_mode()
def tokens_of(found: Encoder, photos: list[Path] | None = None) -> list[Tensor]:
    """The tokens of every item, without padding."""
    table = pd.DataFrame({"text": CAPTIONS} if photos is None else {"locator": [path.name for path in photos]})
    reader = found.token_reader("train.image.reads")
    padded = reader.module(reader.load(table))
    assert padded.dtype == torch.float32 and padded.shape[2] == reader.dim
    return [tokens[mask] for tokens, mask in zip(padded, token_mask(padded), strict=True)]


def assert_same_tokens(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert [len(tokens) for tokens in ours] == [len(tokens) for tokens in theirs]
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_open_clips_tokens_are_its_own_up_to_the_end_of_text(photos: list[Path], tmp_path: Path) -> None:
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 16, "width": 24, "heads": 2, "layers": 2}
    content = {"kind": "open_clip", "random_init": True, "config": {"vision_cfg": vision, "text_cfg": text}}
    image = encoder("image", tmp_path, **content)
    pixels = image.load(pd.DataFrame({"locator": [path.name for path in photos]}))
    before = image.module(pixels)
    ours = tokens_of(image, photos)
    assert torch.equal(image.module(pixels), before), "the pooled output is as it was"
    image.backbone.output_tokens = True
    assert_same_tokens(ours, [*image.backbone(pixels)[1]])
    assert [len(tokens) for tokens in ours] == [4] * 3  # patches, without the class token

    captions = encoder("text", tmp_path, **content)
    ids = captions.load(pd.DataFrame({"text": CAPTIONS}))
    ours = tokens_of(captions)
    captions.backbone.output_tokens = True
    pooled, states = captions.backbone(ids)
    lengths = [int(row.argmax()) + 1 for row in ids]  # the end of text has the largest id
    assert len(set(lengths)) > 2 and max(lengths) < 16
    assert_same_tokens(ours, [state[:length] for state, length in zip(states, lengths, strict=True)])
    last = torch.stack([tokens[-1] for tokens in ours]) @ captions.backbone.text_projection
    torch.testing.assert_close(last, pooled, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_text_models_tokens_are_its_hidden_states_one_caption_at_a_time(bert: Path, tmp_path: Path) -> None:
    model, tokenizer = transformers.BertModel.from_pretrained(bert).eval(), word_tokenizer(**BERT_SPECIAL)
    alone = [model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0] for caption in CAPTIONS]
    found = encoder("text", tmp_path, kind="transformers", model=of(bert))
    assert_same_tokens(tokens_of(found), alone)
    assert_same(torch.stack([tokens.mean(0) for tokens in tokens_of(found)]), embedded(found))

    pipeline = SentenceTransformer(modules=[modules.Transformer(str(bert)), modules.Pooling(32, "mean")], device="cpu")
    pipeline.save(str(tmp_path / "pipeline"))
    found = encoder("text", tmp_path, kind="sentence_transformers", model=of(tmp_path / "pipeline"))
    assert_same_tokens(tokens_of(found), alone)


@torch.inference_mode()
def test_both_towers_of_clip_and_siglips_text_give_tokens(
    clip: Path, siglip: Path, photos: list[Path], tmp_path: Path
) -> None:
    model, tokenizer = transformers.CLIPModel.from_pretrained(clip).eval(), word_tokenizer(**BERT_SPECIAL)
    given = [tokenizer(caption, return_tensors="pt", return_token_type_ids=False) for caption in CAPTIONS]
    expected = [model.text_model(**tokens).last_hidden_state[0] for tokens in given]
    assert_same_tokens(tokens_of(encoder("text", tmp_path, kind="transformers", model=of(clip))), expected)
    image = encoder("image", tmp_path, kind="transformers", model=of(clip))
    pixels = image.load(pd.DataFrame({"locator": [path.name for path in photos]}))
    states = model.vision_model(pixel_values=pixels).last_hidden_state
    assert states.shape[1] == 5  # the class token first
    assert_same_tokens(tokens_of(image, photos), [*states[:, 1:]])
    lengths = [len(tokens) for tokens in tokens_of(encoder("text", tmp_path, kind="transformers", model=of(siglip)))]
    # It pads all captions to 16 tokens and reads them; what counts are words, special tokens and the first padding.
    assert lengths == [min(16, len(caption.split()) + 3) for caption in CAPTIONS]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "count"), [("vit_tiny_patch16_224", 196), ("resnet10t", 36), ("swin_tiny_patch4_window7_224", 49)]
)
def test_timm_models_give_patches_and_cells(name: str, count: int, photos: list[Path], tmp_path: Path) -> None:
    found = encoder("image", tmp_path, kind="timm", model=name, random_init=True)
    ours = torch.stack(tokens_of(found, photos[:1]))
    assert ours.shape == (1, count, found.token_reader("k").dim)
    pixels = found.load(pd.DataFrame({"locator": [photos[0].name]}))
    features = found.backbone.forward_features(pixels)
    if name == "vit_tiny_patch16_224":
        torch.testing.assert_close(ours, features[:, 1:])
    else:  # both pool by the mean over cells
        torch.testing.assert_close(ours.mean(1), embedded(found, photos[:1]), atol=1e-5, rtol=1e-5)


def test_stored_features_without_tokens_and_models_that_have_none_say_so(tmp_path: Path) -> None:
    config = {"embed_dim": 64, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1}}
    found = encoder("image", tmp_path, kind="open_clip", random_init=True, config=config)
    found.tokens = None
    with pytest.raises(InputError, match=r"train.image.reads: tokens, but encoders.image \(open_clip"):
        found.token_reader("train.image.reads")
    assert not OpenClipImageTokens.reads(open_clip.create_model("RN50").visual)


# ---- identity


def test_identity_follows_weights_and_settings_and_not_the_folder(bert: Path, tmp_path: Path) -> None:
    here = encoder("text", tmp_path, kind="transformers", model=of(bert))
    moved = bert.rename(tmp_path / "moved")
    there = encoder("text", tmp_path, kind="transformers", model=of(moved))
    assert same_encoder(here.identity, there.identity)
    json.dumps(here.identity)
    for change in ({"pooling": "cls"}, {"prompt": "a {text}"}, {"max_length": 4}):
        assert not same_encoder(
            here.identity, encoder("text", tmp_path, kind="transformers", model=of(moved), **change).identity
        )
    tokenizer = moved / "tokenizer.json"
    content = tokenizer.read_text()
    assert '"snow"' in content and '"tall"' in content
    tokenizer.write_text(content.replace('"snow"', '"x"').replace('"tall"', '"snow"').replace('"x"', '"tall"'))
    assert not same_encoder(here.identity, encoder("text", tmp_path, kind="transformers", model=of(moved)).identity)
    tokenizer.write_text(content)
    assert same_encoder(here.identity, encoder("text", tmp_path, kind="transformers", model=of(moved)).identity)
    model = transformers.BertModel.from_pretrained(moved)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5, 7] += 1e-3
    model.save_pretrained(moved)
    assert not same_encoder(here.identity, encoder("text", tmp_path, kind="transformers", model=of(moved)).identity)


# ---- what cannot be loaded


def message(modality: str, root: Path, **content: Any) -> str:
    with pytest.raises(InputError) as caught:
        encoder(modality, root, **content)
    return str(caught.value)


def test_folders_that_are_no_models(bert: Path, tmp_path: Path) -> None:
    ours: dict[str, Any] = {"kind": "transformers", "model": of(bert)}
    assert f"{tmp_path / 'none'} is no folder" in message(
        "text", tmp_path, kind="transformers", model=of(tmp_path / "none")
    )
    assert "has no modules.json" in message("text", tmp_path, kind="sentence_transformers", model=of(bert))
    said = message("text", tmp_path, kind="transformers", model=str(bert))
    assert f"{bert} is a folder here" in said and f"Use local-dir:{bert}" in said
    (bert / "model.safetensors").rename(tmp_path / "kept")
    assert "holds a configuration but no weights" in message("text", tmp_path, **ours)
    (bert / "model.safetensors").write_bytes((tmp_path / "kept").read_bytes()[:500])
    assert f"cannot load local-dir:{bert}" in message("text", tmp_path, **ours)
    (bert / "model.safetensors").write_bytes((tmp_path / "kept").read_bytes())
    (bert / "config.json").write_text("{")
    assert f"cannot load local-dir:{bert}" in message("text", tmp_path, **ours)


def test_weights_that_the_files_lack_are_never_random(bert: Path, tmp_path: Path) -> None:
    model = transformers.BertModel.from_pretrained(bert)
    state = model.state_dict()
    without_pooler = {name: value for name, value in state.items() if not name.startswith("pooler")}
    model.save_pretrained(bert, state_dict=without_pooler)
    ours: dict[str, Any] = {"kind": "transformers", "model": of(bert)}
    one, two = (encoder("text", tmp_path, **ours).identity["weights"] for _ in range(2))
    assert one == two, "a pooler that is not used must not be made up"
    assert "use pooling: mean or cls" in message("text", tmp_path, **ours, pooling="pooler")
    less = {name: value for name, value in without_pooler.items() if "layer.1.attention.self.query" not in name}
    model.save_pretrained(bert, state_dict=less)
    assert "the files hold no weights for" in message("text", tmp_path, **ours)


def test_a_tokenizer_of_another_model_is_refused(bert: Path, tmp_path: Path) -> None:
    tokenizer = word_tokenizer(**BERT_SPECIAL)
    tokenizer.add_tokens(["entirely", "new"])
    tokenizer.save_pretrained(bert)
    said = message("text", tmp_path, kind="transformers", model=of(bert))
    assert (
        f"the tokenizer has {6 + len(WORDS)} tokens, but the model's embedding table has {4 + len(WORDS)} rows" in said
    )


def test_a_preprocessor_of_another_size_is_refused(clip: Path, tmp_path: Path) -> None:
    size = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    transformers.CLIPImageProcessor(**size).save_pretrained(clip)
    said = message("image", tmp_path, kind="transformers", model=of(clip))
    assert "the model does not take pictures of (48, 48) pixels" in said
    assert "one image size" in said


def test_names_that_are_not_known_and_hubs_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = message("image", tmp_path, kind="timm", model="vit_tiny_patch16_244", random_init=True)
    assert "timm knows no model 'vit_tiny_patch16_244'; did you mean vit_tiny_patch16_224?" in said
    assert "no such file" in message(
        "image", tmp_path, kind="timm", model="resnet10t", checkpoint=str(tmp_path / "no.pth")
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for kind, model in (("transformers", "a/b"), ("sentence_transformers", "a/b")):
        said = message("text", tmp_path, kind=kind, model=model)
        assert "a/b is not cached, and http://127.0.0.1:9 cannot be reached" in said
        assert "hf download a/b --local-dir FOLDER" in said
    said = message("image", tmp_path, kind="timm", model="resnet18.a1_in1k")
    assert "cannot be reached" in said
    assert "local-dir:FOLDER" in said
