"""Logs the metrics of your own script: `from disttrain.metrics import log_metrics`. The function may also be copied."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any


def log_metrics(values: Mapping[str, Any] = {}, /, **more: Any) -> None:
    """Logs some numbers, for `sweep status` and `sweep collect`: as one line of JSON in the file $SWEEP_METRICS.

    The arguments are as those of `dict`. The name `step` is the number of the step to which the numbers belong. Without
    $SWEEP_METRICS nothing happens, so the script also runs outside a sweep. What cannot be written is left out, with a
    line on stderr: it ends no run.

    Args:
        values: The numbers by name; a number may be a scalar of numpy or torch.
        more: Further numbers.

    Example:
        >>> log_metrics(step=10, loss=0.3)
        >>> log_metrics({"step": 10, "eval/accuracy": 0.9})
    """
    path = os.environ.get("SWEEP_METRICS")
    if not path:
        return
    parts = []
    for name, value in {**values, **more}.items():
        try:
            part = json.dumps({name: value}, default=lambda x: x.item() if hasattr(x, "item") else float(x))
            parts.append(part[1:-1])
        except Exception as error:  # noqa: BLE001 - the library of the value raises it
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"log_metrics: {name!r} is left out: {reason}", file=sys.stderr)
    line = f"{{{', '.join(parts)}}}\n"
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, line.encode())  # one call: the lines of several processes do not mix
        finally:
            os.close(file)
    except OSError as error:
        print(f"log_metrics: {path} cannot be written: {error.strerror}", file=sys.stderr)
