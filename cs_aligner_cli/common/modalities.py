"""The names that every room shares: modalities, and the stores of a run."""

MODALITIES = ("image", "text")
# The stores of a run: the untouched encoders' rows, the control's without a divergence, those of the trained towers.
FROZEN = "frozen"
PAIRWISE_ONLY = "pairwise_only"
ALIGNED = "aligned"
# What a tower can read: one pooled row of an item, or all of its tokens.
TOKENS = "tokens"
# What is tuned of a tower that trains on stored embeddings or tokens.
CACHED = ("frozen", "adapter")
