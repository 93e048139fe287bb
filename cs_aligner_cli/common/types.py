"""Array types that signatures share; this module imports no torch, so that light commands stay light."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# Row numbers, counts and ranks.
Ints: TypeAlias = npt.NDArray[np.int64]
# Statistics are taken in float64.
Floats: TypeAlias = npt.NDArray[np.float64]
# What models and pictures are made of.
Floats32: TypeAlias = npt.NDArray[np.float32]
