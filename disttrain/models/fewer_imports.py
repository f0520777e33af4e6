"""Imports transformers for text models without what they do not use: it opens thousands of files otherwise.

On a file system that hundreds of ranks share, each file that a rank opens at its start costs time. transformers lists
all of its model files twice, what it has for object detection and videos imports scipy and torchvision, and what it has
for models that are divided over devices imports accelerate.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_UNUSED = ("is_accelerate_available", "is_scipy_available", "is_torchvision_available")


def import_text_models() -> None:
    """Imports what all transformers models share; what another version has under other names is imported as usual.

    Object detection, videos and `device_map` then do not work in this process, so this is for the text models of this
    package only.
    """
    import transformers

    folder = Path(str(transformers.__file__)).parent
    with suppress(ImportError, AttributeError), _listed_once(folder / "models"):
        importlib.import_module("transformers.models")
    with suppress(ImportError, AttributeError), _without(*_UNUSED):
        for name in ("modeling_layers", "modeling_utils", "generation.utils"):
            importlib.import_module(f"transformers.{name}")


@contextmanager
def _listed_once(models: Path) -> Iterator[None]:
    """Lets `transformers.models` reuse the list of model files that `transformers` has made."""
    utils: Any = importlib.import_module("transformers.utils.import_utils")
    original = utils.define_import_structure
    before = original.cache_info().misses
    listed = original(models, prefix="models")  # from its cache
    if original.cache_info().misses != before:
        raise AttributeError("this version of transformers makes the list in another way")
    own = {
        needs: {name.removeprefix("models."): objects for name, objects in modules.items()}
        for needs, modules in listed.items()
    }

    def reuse(path: Any, prefix: str | None = None) -> Any:
        if prefix is None and Path(path).parent == models:
            return own
        return original(path, prefix)

    utils.define_import_structure = reuse
    try:
        yield
    finally:
        utils.define_import_structure = original


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Lets modules that are imported in the block see that optional packages are not available."""
    utils: Any = importlib.import_module("transformers.utils")
    before = {name: getattr(utils, name) for name in names}
    for name in names:
        setattr(utils, name, lambda: False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(utils, name, value)
