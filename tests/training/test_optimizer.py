"""The optimizer against torch's own."""

from __future__ import annotations

import torch
from torch.optim import AdamW

from cs_aligner_cli.training.optimizer import EagerAdamW


def test_eager_adamw_is_torchs_bit_by_bit_also_when_it_goes_on_from_a_state() -> None:
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 1e-2, "betas": (0.9, 0.98), "weight_decay": 0.1, "fused": True}
    pairs = [(ours, EagerAdamW([ours], **options)), (theirs, AdamW([theirs], **options))]  # type: ignore[arg-type]
    for turn in range(2):
        for weight, optimizer in pairs:
            for power in (2, 4):
                optimizer.zero_grad()
                (weight**power).sum().backward()
                optimizer.step()
        assert torch.equal(ours, theirs) and not torch.equal(ours, start)
        if not turn:
            again = EagerAdamW([ours], **options)  # type: ignore[arg-type]
            again.load_state_dict(pairs[0][1].state_dict())
            pairs[0] = ours, again
