"""Whether what a run needs of the hub is in this host's cache, or can be downloaded; loads no library of the hub."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from disttrain.config.hub_inputs import OFFLINE, is_offline
from disttrain.errors import first_line

CACHED, REACHABLE = "cached", "reachable"
_HUB = "https://huggingface.co"
_TIMEOUT_S = 10.0


def hub_access(
    models: Sequence[str],
    datasets: Sequence[str],
    environ: Mapping[str, str],
    pinned: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """CACHED, REACHABLE, or why it cannot be had, by hub id.

    Args:
        models: The hub ids of models and tokenizers.
        datasets: The hub ids of data sets.
        environ: The environment: HF_HUB_CACHE, HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT.
        pinned: The commit that `sweep prefetch` has pinned, by hub id. A run with it does not ask the hub.
    """
    found = {}
    for kind, names in (("models", models), ("datasets", datasets)):
        for name in names:
            found[name] = _access(kind, name, environ, pinned.get(name))
    return found


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The folder of downloaded files of the hub.

    Example:
        >>> str(hub_cache({"HF_HOME": "/shared/hf"}))
        '/shared/hf/hub'
    """
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"]).expanduser()
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environ.get("HF_HOME") or Path(base) / "huggingface").expanduser() / "hub"


def _access(kind: str, name: str, environ: Mapping[str, str], commit: str | None) -> str:
    folder = hub_cache(environ) / f"{kind}--{name.replace('/', '--')}" / "snapshots"
    if any(folder.glob(f"{commit or '*'}/*")):
        return CACHED
    if commit is not None and OFFLINE not in environ:
        return f"its commit {commit[:12]} is pinned, and {hub_cache(environ)} does not have it"
    if is_offline(environ):
        return f"{OFFLINE} is set, and {hub_cache(environ)} does not have it"
    return _request(f"{environ.get('HF_ENDPOINT') or _HUB}/api/{kind}/{name}")


def _request(address: str) -> str:
    """REACHABLE if the hub answers for this address, else the reason."""
    if not address.startswith(("http://", "https://")):
        return f"HF_ENDPOINT is no address: {address}"
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - http or https, by the lines above
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
            return REACHABLE
    except urllib.error.HTTPError as error:
        return f"{address} answers {error.code}"
    except urllib.error.URLError as error:
        return f"{address} cannot be reached: {error.reason}"
    except (OSError, http.client.HTTPException) as error:
        return f"{address} cannot be reached: {first_line(error)}"
