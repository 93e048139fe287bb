"""Inputs of training steps where the step is computed, so that no step waits for what it is taken on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.towers.towers import Inputs

# The share of a device's free memory that stored features may take before the first step.
_SHARE = 0.4


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on a device; a copy from ordinary memory would wait for all that was launched on it."""
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


class DeviceInputs(Inputs):
    """The same inputs as of ``inputs``: stored features lie on the device, as far as ``memory`` bytes of it hold them.

    A batch of them is gathered there; features that do not fit are read and moved a batch at a time. What a live tower
    reads lies in pinned memory: a step moves it a part at a time.
    """

    def __init__(self, inputs: Inputs, device: torch.device, memory: int) -> None:
        self._inputs, self._device, self._memory = inputs, device, memory
        self.live, self.reads = inputs.live, inputs.reads
        self._resident: dict[tuple[str, int], tuple[Split, Tensor | None]] = {}

    def __call__(self, modality: str, split: Split, rows: Ints) -> Tensor:
        """The inputs of some rows of a split's table: a CUDA tensor of stored ones, a pinned one for a live tower."""
        pinned = self._device.type == "cuda"
        if modality in self.live:
            loaded = self._inputs(modality, split, rows)
            return loaded.pin_memory() if pinned else loaded
        with torch.cuda.device(self._device if pinned else -1):  # a thread of its own begins with the first GPU
            if self.reads[modality] == "tokens":
                return moved(self._inputs(modality, split, rows), self._device)
            stored = self._stored(modality, split)
            if stored is None:
                return moved(self._inputs(modality, split, rows), self._device)
            return stored[moved(torch.from_numpy(rows), self._device)]

    def features(self, modality: str, items: Sequence[tuple[Split, Ints]], loaded: Tensor | None = None) -> Tensor:
        """As ``Inputs.features``."""
        if modality in self.live:
            return self._inputs.features(modality, items, loaded)
        return super().features(modality, items, loaded)

    def _stored(self, modality: str, split: Split) -> Tensor | None:
        """All inputs of a split on the device; None where they take more than is left of the memory."""
        key = modality, id(split)  # two of one name may hold different items
        if key not in self._resident:
            rows = np.arange(len(split.table(modality)))
            taken = len(rows) * self._inputs(modality, split, rows[:1]).nbytes
            fits = taken <= self._memory
            self._memory -= taken if fits else 0
            self._resident[key] = split, self._inputs(modality, split, rows).to(self._device) if fits else None
        return self._resident[key][1]


def inputs_on(device: torch.device, inputs: Inputs) -> Inputs:
    """Inputs for steps on a device: those of the CPU as they are."""
    if device.type != "cuda":
        return inputs
    return DeviceInputs(inputs, device, int(_SHARE * torch.cuda.mem_get_info(device)[0]))
