"""Which small CLIP holds what a picture of scenes_alone shows, and which small decoder draws it: a grid on one GPU.

python benchmarks/decoder_designs.py OUT [--tiny]
python benchmarks/decoder_designs.py --probe runs/scenes_generate/embeddings/frozen    # what a run's embeddings hold

All models of a kind train side by side, each step one replay of a CUDA graph, on scenes_alone's pictures held in
memory: first CLIPs, of which the one whose image embeddings hold most goes on; then decoders on these, each for the
steps that COST says 1,000 core-seconds of a 2-core CPU to be. Writes OUT/designs.json and OUT/designs.png, what there
is after either part. A CPU does it as well, in many hours.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from cs_aligner_cli.data.scene_captions import captions
from cs_aligner_cli.data.scenes import Scene, draw, make_scenes
from cs_aligner_cli.generation.native_decoder import build_pipeline, read_whitened
from cs_aligner_cli.generation.patch_codec import PatchCodec
from cs_aligner_cli.generation.scene_attributes import ATTRIBUTES, attribute_accuracy, read_attributes, scene_attributes
from cs_aligner_cli.recipe.generate import TrainDecoder
from cs_aligner_cli.stores.embeddings import Store

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXT = {"context_length": 32, "width": 128, "heads": 4, "layers": 2}
# CLIPs by name: patch, width, layers, epochs of batches of 256.
CLIPS = {
    "patches of 16": (16, 128, 3, 24),
    "patches of 32": (32, 192, 2, 24),
    "whole": (64, 256, 2, 24),
    "whole, longer": (64, 256, 2, 40),
    "whole, wider": (64, 512, 2, 24),
}
_WIDE, _THIN = [64, 128], [32, 64, 128]
# Decoders by name: settings of train_decoder, the codec's flattening, and whether embeddings are read whitened.
DECODERS: dict[str, tuple[dict[str, Any], float, bool]] = {
    "as before": ({"widths": _WIDE, "channels": 12}, 0.0, False),
    "wide": ({"widths": _WIDE, "channels": 24}, 0.5, True),
    "wide, flat": ({"widths": _WIDE, "channels": 24}, 1.0, True),
    "thin": ({"widths": _THIN, "channels": 24}, 0.5, True),
    "thin, flat": ({"widths": _THIN, "channels": 24}, 1.0, True),
    "thin, 3e-3": ({"widths": _THIN, "channels": 24, "lr": 3e-3}, 0.5, True),
}
# Core-seconds of a step, measured here with one thread.
COST = {2: 0.52, 3: 0.33}
_BEGAN = time.perf_counter()


def say(*words: object) -> None:
    print(f"{time.perf_counter() - _BEGAN:6.1f}", *words, flush=True)


def made_scenes() -> dict[str, list[Scene]]:
    return make_scenes({"train": 6000, "val": 250, "test": 500}, 0, [1])


def truths_of(scenes: Mapping[str, Sequence[Scene]]) -> dict[str, list[dict[str, str]]]:
    return {split: [scene_attributes(scene) for scene in scenes[split]] for split in ("train", "test")}


class Scenes:
    """Pictures as uint8 (N, 3, 64, 64), tokens (N, 5, 32) and attributes of scenes_alone's training and test split."""

    def __init__(self, train: int) -> None:
        made = made_scenes()
        self.truths = truths_of(made)
        read = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
        self.pictures, self.tokens = {}, {}
        for split, count in (("train", train), ("test", 500)):
            drawn = np.stack([np.asarray(draw(scene, 64)) for scene in made[split][:count]])
            self.pictures[split] = torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous().to(DEVICE)
            self.tokens[split] = torch.stack([read(captions(scene)) for scene in made[split][:count]]).to(DEVICE)
        self.truths["train"] = self.truths["train"][:train]


class Run:
    """One training, a step of which is a graph's replay on CUDA."""

    def __init__(
        self, module: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float, after: Callable[[], None] | None
    ) -> None:
        self.parameters, self.loss, self.steps, self.lr, self.after = [*module.parameters()], loss, steps, lr, after
        self.rate, self.mean = torch.zeros((), device=DEVICE), torch.zeros((), device=DEVICE)
        decayed = [p for p in self.parameters if p.ndim >= 2]
        groups = [{"params": decayed}, {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0}]
        on_gpu = DEVICE == "cuda"
        lr_now = self.rate if on_gpu else lr
        self.optimizer = torch.optim.AdamW(groups, lr_now, (0.9, 0.98), weight_decay=0.05, capturable=on_gpu)
        self.graph = None
        if on_gpu:
            self.stream = torch.cuda.Stream()
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                for _ in range(3):
                    self._step()
            self.stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self._step()

    def _step(self) -> None:
        loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.mean.lerp_(loss.detach(), 0.02)
        if self.after:
            self.after()

    def step(self, number: int) -> None:
        share = number / self.steps
        rate = self.lr * (share / 0.1 if share < 0.1 else 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9)))
        if self.graph is None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self._step()
            return
        with torch.cuda.stream(self.stream):
            self.rate.fill_(rate)
            self.graph.replay()


def train(runs: Mapping[str, Run], what: str) -> None:
    for number in range(max(run.steps for run in runs.values())):
        for run in runs.values():
            if number < run.steps:
                run.step(number)
        if DEVICE == "cuda" and number % 50 == 49:
            torch.cuda.synchronize()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    say(what, {name: (run.steps, round(float(run.mean), 3)) for name, run in runs.items()})


def contrast(image: Tensor, text: Tensor, scale: float) -> Tensor:
    logits, own = scale * image @ text.T, torch.arange(len(image), device=DEVICE)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def some(count: int, of: int) -> Tensor:
    return torch.randint(of, (count,), device=DEVICE)


def best_clip(scenes: Scenes, tiny: bool, found: dict[str, Any]) -> dict[str, Tensor]:
    """Train the CLIPs; the embeddings of the one whose linear probes read colour and cell best."""
    mean, deviation = (
        255 * torch.tensor(v, device=DEVICE)[:, None, None]
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    pictures, tokens = scenes.pictures["train"], scenes.tokens["train"]
    models, runs = {}, {}
    for name, (patch, width, layers, epochs) in CLIPS.items():
        torch.manual_seed(0)
        vision = {"image_size": 64, "patch_size": patch, "width": width, "layers": layers, "head_width": 32}
        model = models[name] = open_clip.model.CLIP(128, vision, TEXT).to(DEVICE)

        def loss(model: Any = model) -> Tensor:
            rows = some(256, len(pictures))
            images = model.encode_image((pictures[rows] - mean) / deviation, normalize=True)
            return contrast(images, model.encode_text(tokens[rows, some(256, 5)], normalize=True), 30.0)

        model.logit_scale.requires_grad_(False)
        trained = nn.ModuleList([model.visual, model.transformer, model.token_embedding, model.ln_final])
        trained.append(nn.ParameterList([model.positional_embedding, model.text_projection]))
        runs[name] = Run(trained, loss, 3 if tiny else 23 * epochs, 1.5e-3, None)
    train(runs, "CLIPs")
    kept: dict[str, dict[str, Tensor]] = {}
    for name, model in models.items():
        with torch.no_grad():
            image, text = (
                lambda part, m=model: m.encode_image((part - mean) / deviation),
                lambda part, m=model: m.encode_text(part),
            )
            made = {f"image {s}": torch.cat([*map(image, p.split(500))]) for s, p in scenes.pictures.items()}
            for split, t in scenes.tokens.items():
                flat = torch.cat([*map(text, t.flatten(0, 1).split(1000))])
                made[f"text {split}"] = flat.unflatten(0, (-1, 5))
            made["negative"] = image(torch.zeros_like(pictures[:1]))[0]
        kept[name] = made
        probes = {a: probe(made["image train"], made["image test"], scenes.truths, a) for a in ATTRIBUTES}
        images, texts = (functional.normalize(t, dim=-1) for t in (made["image test"], made["text test"][:, 0]))
        right = ((texts @ images.T).argmax(1) == torch.arange(500, device=DEVICE)).float().mean()
        gap = (images.mean(0) - texts.mean(0)).norm()
        found["clips"][name] = {**probes, "t2i R@1": round(float(right), 3), "gap": round(float(gap), 3)}
        say(name, found["clips"][name])
    chosen = max(kept, key=lambda name: found["clips"][name]["colour"] + found["clips"][name]["cell"])
    found["clip"] = chosen
    return kept[chosen]


def probe(fitted: Tensor, tested: Tensor, truths: Mapping[str, Sequence[dict[str, str]]], attribute: str) -> float:
    """The share of test pictures of which a ridge regression on the embedding reads an attribute."""
    names = sorted({truth[attribute] for truth in truths["train"]})
    classes = [
        torch.tensor([names.index(t[attribute]) if t[attribute] in names else -1 for t in truths[s]]).to(DEVICE)
        for s in ("train", "test")
    ]
    mean, deviation = fitted.mean(0), fitted.std(0) + 1e-6
    x, y = ((rows - mean).double() / deviation for rows in (fitted, tested))
    target = functional.one_hot(classes[0], len(names)).double()
    weight = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1], device=DEVICE), x.T @ (target - target.mean(0)))
    return round(float(((y @ weight + target.mean(0)).argmax(1) == classes[1]).float().mean()), 3)


class Decoder:
    """A decoder of one design in training, and what it draws."""

    def __init__(self, name: str, scenes: Scenes, made: Mapping[str, Tensor], codecs: dict[Any, Any]) -> None:
        settings, flattening, whitened = DECODERS[name]
        self.spec = TrainDecoder.model_validate(settings)
        embeddings, self.negative = made["image train"], made["negative"]
        key = (self.spec.channels, flattening)
        if key not in codecs:
            pixels = (scenes.pictures["train"].float() / 127.5 - 1).cpu()
            codec = PatchCodec.fit(iter(pixels.split(500)), self.spec.patch, self.spec.channels, flattening)
            with torch.no_grad():
                codecs[key] = codec.to(DEVICE), torch.cat([codec.encode(p.to(DEVICE)) for p in pixels.split(500)])
        self.codec, latents = codecs[key]
        self.pipeline = build_pipeline(self.spec, self.codec, embeddings.shape[1], 64, 0)
        if whitened:
            read_whitened(self.pipeline.unet, embeddings.cpu())
        self.unet = self.pipeline.unet.to(DEVICE)
        weights = [*self.unet.parameters()]
        self.averaged, count = [w.detach().clone() for w in weights], torch.zeros((), device=DEVICE)
        signals, size = self.pipeline.scheduler.alphas_cumprod.to(DEVICE), self.spec.batch_size

        def loss() -> Tensor:
            rows, times = some(size, len(latents)), some(size, 1000)
            clean, noise = latents[rows], torch.randn_like(latents[:size])
            dropped = torch.rand(size, 1, device=DEVICE) < self.spec.dropout
            condition = torch.where(dropped, self.negative, embeddings[rows])
            signal, spread = (s.sqrt()[:, None, None, None] for s in (signals[times], 1 - signals[times]))
            v = self.predict(signal * clean + spread * noise, times, condition)
            return (v - (signal * noise - spread * clean)).square().mean()

        @torch.no_grad()
        def average() -> None:
            count.add_(1)
            share = 1 - (count / (count + 10)).clamp(max=0.995)
            steps = torch._foreach_sub(weights, self.averaged)
            torch._foreach_mul_(steps, share)
            torch._foreach_add_(self.averaged, steps)

        self.loss, self.average = loss, average

    def predict(self, latents: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        found = self.unet(latents, times, None, added_cond_kwargs={"image_embeds": condition}).sample
        return found[:, : latents.shape[1]]

    @torch.no_grad()
    def draw(self, conditions: Tensor, guidance: float, steps: int = 12) -> np.ndarray:
        """(N, 64, 64, 3) uint8."""
        noise = torch.Generator(DEVICE).manual_seed(1)
        latents = torch.randn(len(conditions), self.spec.channels, 8, 8, device=DEVICE, generator=noise)
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(steps)
        for time_step in scheduler.timesteps:
            times = torch.full((len(latents),), int(time_step), device=DEVICE)
            v = self.predict(latents, times, conditions)
            if guidance != 1:
                without = self.predict(latents, times, self.negative.expand_as(conditions))
                v = without + guidance * (v - without)
            latents = scheduler.step(v, time_step, latents).prev_sample
        pixels = self.codec.decode(latents)["sample"].clamp(-1, 1)
        found: np.ndarray = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return found


def seen(pictures: np.ndarray) -> list[dict[str, str]]:
    return [read_attributes(Image.fromarray(picture)) for picture in pictures]


class Reader:
    """Attributes of many pictures, read by all cores; made before anything is on the GPU."""

    def __init__(self, workers: int) -> None:
        self.pool, self.workers = multiprocessing.get_context("fork").Pool(workers), workers
        self.truths: list[dict[str, str]] = []

    def __call__(self, pictures: np.ndarray) -> dict[str, float]:
        parts = self.pool.map(seen, np.array_split(pictures, self.workers))
        shown = [one for part in parts for one in part]
        return {k: round(v, 4) for k, v in attribute_accuracy(shown, self.truths[: len(shown)]).items()}


def draw_all(
    scenes: Scenes, made: Mapping[str, Tensor], read: Reader, tiny: bool, found: dict[str, Any], count: int
) -> None:
    """Train the decoders; ``found`` gets what each draws from image embeddings under several guidances, and a sheet."""
    codecs: dict[Any, Any] = {}
    decoders = {name: Decoder(name, scenes, made, codecs) for name in [*DECODERS][: 2 if tiny else None]}
    say("built")
    runs = {}
    for name, one in decoders.items():
        steps = 3 if tiny else int(1000 / COST[len(one.spec.widths)])
        runs[name] = Run(one.unet, one.loss, steps, one.spec.lr, one.average)
    train(runs, "decoders")
    shown = []
    for name, one in decoders.items():
        with torch.no_grad():
            for weight, kept in zip(one.unet.parameters(), one.averaged, strict=True):
                weight.copy_(kept)
        for guidance in (1.0, 1.5, 2.5):
            drawn = one.draw(made["image test"][: count // 2], guidance)
            found["decoders"].append({"design": name, "guidance": guidance, "steps": runs[name].steps, **read(drawn)})
            say(found["decoders"][-1])
            if guidance == 1.5:
                shown.append(drawn[:12])
    best = max(found["decoders"], key=lambda one: one["mean"])
    found["decoder"] = [best["design"], best["guidance"]]
    rows = [scenes.pictures["test"][:12].permute(0, 2, 3, 1).cpu().numpy(), *shown]
    found["sheet"] = np.concatenate([np.concatenate([*row[:count]], 1) for row in rows], 0)


def main() -> None:
    """Run both parts and write what each has found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/decoder_designs"))
    parser.add_argument("--probe", type=Path, help="only read the attributes from a run's frozen stores")
    parser.add_argument("--tiny", action="store_true", help="a few steps of everything: does it run?")
    options = parser.parse_args()
    if options.probe:
        splits = ("train", "test")
        rows = [torch.from_numpy(Store(options.probe / split).array("image").all()).to(DEVICE) for split in splits]
        truths = truths_of(made_scenes())
        say({attribute: probe(*rows, truths, attribute) for attribute in ATTRIBUTES})
        return
    count = 24 if options.tiny else 500
    read = Reader(2 if options.tiny else 12)
    scenes = Scenes(600 if options.tiny else 6000)
    read.truths = scenes.truths["test"]
    say("data")
    found: dict[str, Any] = {"clips": {}, "decoders": []}

    def write() -> None:
        sheet = found.pop("sheet", None)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "designs.json").write_text(json.dumps(found, indent=1) + "\n")
        if sheet is not None:
            Image.fromarray(sheet).save(options.out / "designs.png")

    made = best_clip(scenes, options.tiny, found)
    write()
    draw_all(scenes, made, read, options.tiny, found, count)
    write()


if __name__ == "__main__":
    main()
