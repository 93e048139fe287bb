"""A small decoder of Kandinsky 2.2's form, trained on frozen image embeddings, that its pipeline loads and runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, KandinskyV22Pipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cs_aligner_cli.files.artifact import written_aside
from cs_aligner_cli.generation.patch_codec import PatchCodec
from cs_aligner_cli.recipe.generate import TrainDecoder

_STATE = "training.safetensors"
_NOISE_STEPS = 1000
# Weights of the moving average that is saved: the longest memory, reached as training goes on.
_AVERAGE = 0.995
# On CPUs convolutions of 3 x 3 latents take a quarter less time so.
_FORMAT = torch.channels_last


def build_pipeline(spec: TrainDecoder, codec: PatchCodec, dim: int, side: int, seed: int) -> KandinskyV22Pipeline:
    """An untrained pipeline that draws pictures of ``side`` pixels from image embeddings of ``dim`` dimensions."""
    levels = len(spec.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=side // spec.patch,
            in_channels=spec.channels,
            out_channels=2 * spec.channels,  # Kandinsky's second half predicts variances, which DDIM leaves unused
            down_block_types=("ResnetDownsampleBlock2D",) * levels,
            up_block_types=("ResnetUpsampleBlock2D",) * levels,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=tuple(spec.widths),
            layers_per_block=1,
            cross_attention_dim=spec.widths[-1],
            attention_head_dim=32,
            norm_num_groups=16,
            encoder_hid_dim_type="image_proj",
            encoder_hid_dim=dim,
            addition_embed_type="image",
            resnet_time_scale_shift="scale_shift",
        )
    scheduler = DDIMScheduler(
        num_train_timesteps=_NOISE_STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    return KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=codec)


@dataclass
class DecoderData:
    """What a decoder is trained on: row i of ``embeddings`` (N, dim) is picture i; ``negative`` (dim,) is the embedding
    of an all-zero picture; ``pictures(rows)`` gives (B, 3, side, side) in [-1, 1]."""

    embeddings: Tensor
    negative: Tensor
    pictures: Callable[[Tensor], Tensor]
    side: int

    def batches(self, size: int) -> Iterator[Tensor]:
        """All pictures in order."""
        for rows in torch.split(torch.arange(len(self.embeddings)), size):
            yield self.pictures(rows)


def train_decoder(
    spec: TrainDecoder, data: DecoderData, folder: Path, seed: int, device: str, advance: Callable[[float], None]
) -> dict[str, float | int]:
    """Train a decoder and save its pipeline into ``folder``; return what was reached.

    The loss is the mean squared error of v (Salimans & Ho 2022) of noised latents, at times drawn with a density that
    grows linearly: what a picture shows is settled where noise is strong. Of ``spec.dropout`` of the rows the condition
    is ``data.negative``, for classifier-free guidance. What is saved is a moving average of the weights. A training
    that was killed goes on from its last state and ends with the same bytes: what is drawn in a step depends on the
    seed and the step alone.
    """
    codec = PatchCodec.fit(data.batches(256), spec.patch, spec.channels)
    pipeline = build_pipeline(spec, codec, data.embeddings.shape[1], data.side, seed)
    read_whitened(pipeline.unet, data.embeddings)
    latents = torch.cat([codec.encode(batch) for batch in data.batches(256)])
    trainer = _Trainer(spec, pipeline, latents, data, seed, device)
    trainer.resume(folder / _STATE)
    while trainer.step < spec.steps:
        advance(trainer.update())
        if trainer.step % spec.checkpoint_steps == 0 and trainer.step < spec.steps:
            trainer.save(folder / _STATE)
    pipeline.unet.to(memory_format=torch.contiguous_format).load_state_dict(trainer.averaged)
    pipeline.save_pretrained(folder)
    (folder / _STATE).unlink(missing_ok=True)
    parameters = sum(p.numel() for p in pipeline.unet.parameters())
    return {"steps": spec.steps, "loss": round(trainer.recent, 5), "parameters": parameters}


@torch.no_grad()
def read_whitened(unet: Any, embeddings: Tensor) -> None:
    """Let the two layers that read the embedding (N, dim) begin as random maps of centred and whitened rows.

    A few directions have most of an embedding's variance, and others, as that of where a shape lies, next to none: as
    they are, they would be learned late. Whitening is shrunk by a hundredth of the mean variance.
    """
    rows = embeddings.double()
    mean, dim = rows.mean(dim=0), rows.shape[1]
    variances, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    shrunk = variances.clamp_min(0) + 0.01 * variances.mean().clamp_min(1e-12)
    whitening = vectors * shrunk.rsqrt() @ vectors.T
    for layer in (unet.encoder_hid_proj.image_embeds, unet.add_embedding.image_proj):
        directions = layer.weight.double() / layer.weight.double().square().mean().sqrt() / dim**0.5
        layer.weight.copy_(directions @ whitening)
        layer.bias.copy_(-(directions @ whitening @ mean))


class _Trainer:
    """The state of a training: weights, their average, AdamW, and the step."""

    def __init__(
        self,
        spec: TrainDecoder,
        pipeline: KandinskyV22Pipeline,
        latents: Tensor,
        data: DecoderData,
        seed: int,
        device: str,
    ) -> None:
        self.spec, self.seed, self.device, self.step, self.recent = spec, seed, device, 0, float("nan")
        self.latents, self.data = latents.to(device, memory_format=_FORMAT), data
        self.embeddings, self.negative = data.embeddings.to(device), data.negative.to(device)
        self.unet: nn.Module = pipeline.unet.to(device, memory_format=_FORMAT).train()
        self.averaged = {name: value.detach().clone() for name, value in self.unet.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=spec.lr, weight_decay=0.01, fused=True)
        self.signal = pipeline.scheduler.alphas_cumprod.to(device)

    def update(self) -> float:
        """One step; returns its loss."""
        draw = torch.Generator().manual_seed(self.seed * 2**31 + self.step)
        rows = torch.randint(len(self.latents), (self.spec.batch_size,), generator=draw).to(self.device)
        # The later of two: its density grows linearly.
        times = torch.randint(_NOISE_STEPS, (2, len(rows)), generator=draw).amax(dim=0).to(self.device)
        clean = self.latents[rows]
        noise = torch.randn(clean.shape, generator=draw).to(self.device)
        dropped = (torch.rand(len(rows), generator=draw) < self.spec.dropout).to(self.device)
        condition = torch.where(dropped[:, None], self.negative, self.embeddings[rows])
        signal = self.signal[times].sqrt()[:, None, None, None]
        spread = (1 - self.signal[times]).sqrt()[:, None, None, None]
        output = self.unet(
            signal * clean + spread * noise, times, None, added_cond_kwargs={"image_embeds": condition}
        ).sample[:, : clean.shape[1]]
        loss = (output - (signal * noise - spread * clean)).square().mean()
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.lr * self._rate()
        loss.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._average()
        value = float(loss.item())
        self.recent = value if self.step == 1 else 0.98 * self.recent + 0.02 * value
        return value

    def _rate(self) -> float:
        """Linear warm-up over 50 steps, then linearly down to nothing."""
        return min((self.step + 1) / 50, (self.spec.steps - self.step) / self.spec.steps)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(_AVERAGE, self.step / (self.step + 10))
        for name, value in self.unet.state_dict().items():
            self.averaged[name].lerp_(value, 1 - decay)

    def save(self, path: Path) -> None:
        """Write all that the next step depends on."""
        tensors = {f"weights.{name}": value for name, value in self.unet.state_dict().items()}
        tensors |= {f"averaged.{name}": value for name, value in self.averaged.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        about = {"step": json.dumps(self.step), "recent": json.dumps(self.recent)}
        with written_aside(path) as aside:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, aside, about)

    def resume(self, path: Path) -> None:
        """Go on from a state that a killed training has left, if there is one."""
        if not path.is_file():
            return
        with safe_open(path, framework="pt", device=self.device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            about = {name: json.loads(text) for name, text in file.metadata().items()}
        self.step, self.recent = about["step"], about["recent"]
        self.unet.load_state_dict(_below("weights.", tensors))
        self.averaged = _below("averaged.", tensors)
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            # The fused optimizer takes weights and state for alike in memory.
            alike = value.to(memory_format=_FORMAT) if value.ndim == 4 else value
            states.setdefault(int(index), {})[key] = alike
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
