"""The Python that runs the ranks, and whether it finds the modules that this process finds."""

from __future__ import annotations

import os
import re
import shlex
import sys

from jobs.planning.cluster_profile import ClusterProfile

# One command that sets variables and starts no other one.
_PLAIN_EXPORT = re.compile(r"\s*export\s+[A-Za-z_]\w*=([^;&|`$\n]|\$(?!\())*")


def imports_elsewhere(cluster: ClusterProfile) -> bool:
    """Whether the ranks may find other Python modules than this process.

    They do with another interpreter, and with lines of `setup` that may set PYTHONPATH.
    """
    if cluster.python and os.path.expanduser(cluster.python) != sys.executable:
        return True
    return any("PYTHONPATH" in line or not _PLAIN_EXPORT.fullmatch(line) for line in cluster.setup)


def compute_python(cluster: ClusterProfile | None) -> str:
    """The interpreter that runs the ranks, quoted for a shell.

    It has the flag -P. Without it, a folder or file `jobs` in the working directory would be imported instead of this
    package.
    """
    python = sys.executable
    if cluster and cluster.python:
        python = cluster.python
    # A shell does not expand ~ inside quotes.
    return f"{shlex.quote(os.path.expanduser(python))} -P"
