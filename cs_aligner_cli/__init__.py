"""csalign: the open toolkit for distributional vision-language alignment."""

__version__ = "0.1.0"
