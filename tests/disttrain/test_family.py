"""Both families keep to the Protocol; mypy checks what this test only names."""

from __future__ import annotations

from disttrain import bert, vit
from disttrain.family import Family, load_family


def test_both_modules_are_families() -> None:
    families: tuple[Family, ...] = (bert, vit)
    assert [family.INPUT for family in families] == ["text", "image"]
    assert (load_family("bert"), load_family("vit")) == families
