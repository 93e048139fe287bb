"""How often weights are drawn inside ``with Draws() as draws``."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode


class Draws(TorchFunctionMode):
    """Counts the draws that are really made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        drawing = (Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_)
        self.count += func in drawing  # the three of init hide what they call
        return func(*args, **(kwargs or {}))
