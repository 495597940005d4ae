"""Ablations of margin-based adversarial training: methods as compositions of typed parts."""

__version__ = "0.1.0"
