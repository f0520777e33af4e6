"""The examples in docstrings give the results that they print."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import disttrain
import jobs

SCRIPTS = {"disttrain.bert", "disttrain.vit", "jobs.__main__"}
MODULES = sorted(
    module.name
    for package in (disttrain, jobs)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if module.name not in SCRIPTS
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
