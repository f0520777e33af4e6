"""The login node's part: plans sweeps, submits them, and collects their results."""

__version__ = "0.1.0"
