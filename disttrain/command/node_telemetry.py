"""The samples of the GPUs that a script uses, and of its host, written next to the script by its supervisor."""

from __future__ import annotations
