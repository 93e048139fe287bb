"""The fixture of the tests of sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trials import Trial


@pytest.fixture
def trial(tmp_path: Path, csalign: Callable[..., Any], write_yaml: Callable[..., Path]) -> Trial:
    """``trial.put("a.jpg", ...)``, then ``trial(kind="folder")``: the outcome of prepare."""
    return Trial(tmp_path, csalign, write_yaml)
