"""Tries the imports of a run in a new Python: a package may be missing, lack another one, or not fit.

python -m tests.gpu.imports numpy datasets
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterable, Mapping

from tests.gpu.wheels import REPOSITORY

_LIMIT_S = 120.0


def not_importable(names: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The modules that cannot be imported, and why.

    Args:
        names: The modules.
        environ: The environment of the new Python.
    """
    reasons = dict.fromkeys(names, "its import did not end")
    command = [sys.executable, "-m", "tests.gpu.imports", *reasons]
    try:
        output = subprocess.run(
            command,
            env=dict(environ),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=_LIMIT_S,
        ).stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
    for line in output.decode(errors="replace").splitlines():
        name, tab, reason = line.partition("\t")
        if tab and name in reasons:
            reasons[name] = reason
    return {name: reason for name, reason in reasons.items() if reason}


def why_not(name: str) -> str:
    """Imports a module; the reason in one line if that fails."""
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a package may raise anything
        return (str(error) or type(error).__name__).splitlines()[0]
    return ""


if __name__ == "__main__":
    for module in sys.argv[1:]:
        print(module, why_not(module), sep="\t", flush=True)
