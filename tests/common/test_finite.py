"""NaN and infinity are no JSON."""

from __future__ import annotations

import json
import math

from cs_aligner_cli.common.results import finite


def test_what_json_cannot_hold_becomes_null_at_any_depth() -> None:
    given = {"spearman": math.nan, "interval": (-math.inf, 0.5), "stores": [{"R@1": 1.0, "n": 3, "name": "nan"}]}
    written = json.dumps(finite(given), allow_nan=False)
    assert json.loads(written) == {
        "spearman": None,
        "interval": [None, 0.5],
        "stores": [{"R@1": 1.0, "n": 3, "name": "nan"}],
    }
