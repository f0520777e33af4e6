"""The folder of wheels is complete and small, and only what fits and is missing is unpacked."""

from __future__ import annotations

import platform
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import wheels
from tests.gpu.wheels import Unpacked, fits, pinned, report, requirements, unmet, unpack_missing

OURS, CPU = f"cp{sys.version_info.major}{sys.version_info.minor}", platform.machine()


def make_wheel(folder: Path, name: str, *files: str, tags: str = "py3-none-any", needs: Sequence[str] = ()) -> None:
    metadata = [f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {need}" for need in needs)]
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-1.0-{tags}.whl", "w") as wheel:
        for file in files or (f"{name.replace('-', '_')}/__init__.py",):
            wheel.writestr(file, "")
        wheel.writestr(f"{name.replace('-', '_')}-1.0.dist-info/METADATA", "\n".join(metadata))


def resolved(*names: str) -> dict[str, Any]:
    return {"install": [{"metadata": {"name": name, "version": "1.0"}} for name in names]}


def test_all_that_pip_resolves_is_downloaded() -> None:
    report_of_pip = resolved("huggingface_hub", "httpx2", "NumPy", "truststore", "torch", "pyarrow")
    assert pinned(report_of_pip) == ["huggingface_hub==1.0", "httpx2==1.0", "truststore==1.0"]


def test_requirements_are_those_of_the_setup() -> None:
    assert {"transformers>=5", "submitit>=1.5.4,<1.6", "pillow", "nvidia-ml-py"} <= set(requirements())
    assert not any(word in line for line in requirements() for word in ("torch", "numpy", "ml-py3", "#"))


def test_a_folder_without_a_requirement_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on_target = ["httpx2<3", 'truststore; sys_platform == "linux"', "numpy>=1", "Base_Package"]
    elsewhere = ['tomli; python_version < "3.11"', 'colorama; platform_system == "Windows"', 'dev; extra == "dev"']
    make_wheel(tmp_path, "huggingface-hub", needs=[*on_target, *elsewhere])
    make_wheel(tmp_path, "base-package")
    assert unmet(tmp_path) == ["httpx2", "truststore"]
    assert report(tmp_path) == 1
    assert capsys.readouterr().err == "error: missing: httpx2, truststore\n"
    for name in ("httpx2", "truststore"):
        make_wheel(tmp_path, name)
    assert report(tmp_path) == 0


def test_a_large_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_wheel(tmp_path, "small")
    make_wheel(tmp_path, "large", "large.py", "large_data.py")
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    monkeypatch.setattr(wheels, "LIMIT_BYTES", sum(sizes))
    assert report(tmp_path) == 0
    monkeypatch.setattr(wheels, "LIMIT_BYTES", sum(sizes) - 1)
    assert report(tmp_path) == 1
    expected = "error: too large; the largest: large-1.0-py3-none-any.whl, small-1.0-py3-none-any.whl\n"
    assert capsys.readouterr().err == expected


def test_only_missing_packages_are_unpacked(tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "numpy-successor", "numpy/__init__.py", "numpy_example.py")
    make_wheel(folder, "no-such", "no_such_module/__init__.py", "_no_such.py", "no_such.libs/libc.so")
    assert unpack_missing(folder, tmp_path / "site") == Unpacked(done=("no_such",))
    found = {path.name for path in (tmp_path / "site").iterdir()}
    assert found == {"no_such_module", "_no_such.py", "no_such.libs", "no_such-1.0.dist-info"}
    assert unpack_missing(tmp_path / "absent", tmp_path / "other") == Unpacked()


def test_a_wheel_for_another_python_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "no-such", tags=f"cp27-cp27mu-manylinux2014_{CPU}")
    assert unpack_missing(folder, tmp_path / "site") == Unpacked(unfit=("no_such",))
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("py3-none-any", True),
        ("py2.py3-none-any", True),
        (f"{OURS}-{OURS}-manylinux2014_{CPU}.manylinux_2_17_{CPU}", True),
        (f"cp36-abi3-manylinux_2_17_{CPU}", True),
        (f"py3-none-manylinux2014_{CPU}", True),
        (f"cp27-cp27mu-manylinux2014_{CPU}", False),
        (f"{OURS}-{OURS}t-manylinux2014_{CPU}", False),
        (f"{OURS}-{OURS}-manylinux2014_sparc", False),
        ("cp36-abi3-manylinux_2_17_sparc", False),
        (f"{OURS}-{OURS}-macosx_11_0_{CPU}", False),
    ],
)
def test_tags_of_this_machine(tags: str, expected: bool) -> None:
    assert fits(f"some_name-1.0-{tags}.whl") == expected
