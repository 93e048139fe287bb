"""What a stage costs: seconds on the clock and of the processors, and the most memory that it held."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from cs_aligner_cli.common.results import Frozen

_MB = 1024**2


class Cost(Frozen):
    """What one stage cost, all that its process did meanwhile counted in."""

    seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    device: str
    device_peak_memory_mb: float | None = None


class Meter:
    """Measures from its making on; ``read`` gives what has been spent until then."""

    def __init__(self) -> None:
        self._clock, self._cpu = time.monotonic(), _cpu_seconds()
        self._resets = _reset_peak()

    def read(self) -> Cost:
        """The cost so far. On systems other than Linux the peak is that of the whole process."""
        device, peak = _device()
        return Cost(
            seconds=round(time.monotonic() - self._clock, 3),
            cpu_seconds=round(_cpu_seconds() - self._cpu, 3),
            peak_memory_mb=round(_peak_bytes(self._resets) / _MB, 1),
            device=device,
            device_peak_memory_mb=peak,
        )


def _cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    return sum(os.times()[:4])


def _reset_peak() -> bool:
    """Let Linux forget the peak of before; False where that cannot be done."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_bytes(was_reset: bool) -> float:
    if was_reset:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) if sys.platform == "darwin" else float(peak) * 1024


def _device() -> tuple[str, float | None]:
    """The GPU that this process used, with its peak in MB, or the CPU."""
    torch = sys.modules.get("torch")  # a stage that never imported it used no GPU
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return "cpu", None
    return torch.cuda.get_device_name(), round(torch.cuda.max_memory_allocated() / _MB, 1)
