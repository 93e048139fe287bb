"""How often this thread calls functions of torch inside ``with Calls(...) as calls``, however deep in a library."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

# What draws weights; the three of init hide what they call.
DRAWING = (Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_)


class Calls(TorchFunctionMode):
    """Counts the calls that reach torch, after whatever mode was entered later."""

    def __init__(self, *functions: Any) -> None:
        super().__init__()
        self.functions, self.count = functions, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.count += func in self.functions
        return func(*args, **(kwargs or {}))
