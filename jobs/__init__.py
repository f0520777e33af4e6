"""The login node's side: what to run, where, and what became of it."""

__version__ = "0.1.0"
