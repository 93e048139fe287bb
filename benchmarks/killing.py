"""What the campaigns of kills share: processes forked from one that has imported everything, folders compared."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What is there while a process works in a folder, and what may differ between two runs that are equal.
LOCKS = (".lock", ".lock-holder")
_TIMES = {"finished", "seconds", "per_second", "encoder_busy", "computed", "seal"}


@dataclass
class Found:
    """What a campaign found: counts by kind of event, and every failure in words."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def sleep_while_alive(child: int, seconds: float) -> None:
    """Wait some seconds, or until a child process ends."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        time.sleep(min(left, 0.01))
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return


def unlike(run: Path, reference: Path) -> list[str]:
    """How a run's folder differs from the reference's, apart from times; leftovers of killed processes count."""
    ours, theirs = (
        {
            str(p.relative_to(folder)): p
            for p in folder.rglob("*")
            if p.is_file() and p.name != "run.json" and not p.name.endswith(LOCKS)
        }
        for folder in (run, reference)
    )
    odd = [f"{name} is {'too much' if name in ours else 'missing'}" for name in sorted(ours.keys() ^ theirs.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        one, other = ours[name].read_bytes(), theirs[name].read_bytes()
        if name.endswith("stage.json"):
            one, other = (json.dumps(without_times(json.loads(text))).encode() for text in (one, other))
        if one != other:
            odd.append(f"{name} differs")
    return odd


def without_times(value: Any) -> Any:
    """A value of a JSON file without the times in it."""
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in _TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def warm_up() -> None:
    """Import whatever a stage needs, so that forked trials need not."""
    import cs_aligner_cli.encoders.open_clip
    import cs_aligner_cli.stages.embed.job
    import cs_aligner_cli.stages.prepare.job
    import cs_aligner_cli.training.loop  # noqa: F401
