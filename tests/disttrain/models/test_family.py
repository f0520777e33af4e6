"""Both modules are model families; mypy checks that they match the Protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.errors import UserError
from disttrain.models import bert, vit
from disttrain.models.family import Family, load_family


def test_both_modules_are_families() -> None:
    families: tuple[Family, ...] = (bert, vit)
    assert [family.INPUT for family in families] == ["text", "image"]
    assert (load_family("bert"), load_family("vit")) == families


def test_an_error_in_a_user_module_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_family.py").write_text("import torch\n\ntorch.no_such_thing\n\nclass Mine: ...\n")
    (tmp_path / "empty_family.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AttributeError, match="no_such_thing"):
        load_family("broken_family:Mine")
    with pytest.raises(UserError, match="module 'empty_family' has no 'Mine'"):
        load_family("empty_family:Mine")
