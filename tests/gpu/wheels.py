"""The folder of wheels for a GPU machine without a registry: `make gpu-wheels` fills it, `make gpu` uses it there."""

from __future__ import annotations

import configparser
import email
import importlib.util
import json
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "gpu-wheels"
LIMIT_BYTES = 60 * 2**20
PYTHON = "3.12"
# Too large for the folder. What torch needs comes with torch.
LARGE = frozenset({"torch", "torchvision", "numpy", "pandas", "pyarrow"})
_IN_PLACE_OF = {"nvidia-ml-py3": "nvidia-ml-py"}  # the successor, which has a wheel
_PEERS = ("accelerate",)  # pip does not resolve it: it needs torch. The rest of its needs, a run needs too.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# The machine for which markers of requirements are evaluated.
_TARGET = {
    "extra": "",
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": f"{PYTHON}.0",
    "python_version": PYTHON,
    "sys_platform": "linux",
}


def download() -> int:
    """Fills the folder with versions that fit together, and prints its size.

    Returns:
        The exit status: 1 if it is larger than the limit, or if a wheel needs what is not in it.
    """
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "--quiet"]
    platforms = [word for tag in _PLATFORMS for word in ("--platform", tag)]
    target = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]
    # First the versions, with all that they need; then the files of those that are not too large.
    with tempfile.TemporaryDirectory() as unused:
        dry_run = ["--dry-run", "--ignore-installed", "--report", "-", "--target", unused]
        resolved = subprocess.run(
            [*pip, "install", *dry_run, *target, *requirements()], check=True, stdout=subprocess.PIPE, text=True
        )
    wanted = [*pinned(json.loads(resolved.stdout)), *_PEERS]
    subprocess.run([*pip, "download", "--no-deps", *target, "--dest", str(FOLDER), *wanted], check=True)
    return report(FOLDER)


def requirements() -> list[str]:
    """What the commands and a run need, as setup.cfg says, without what is too large."""
    options = configparser.ConfigParser(interpolation=None)
    options.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    lines = f"{options['options']['install_requires']}\n{options['options.extras_require']['train']}".split("\n")
    return [_IN_PLACE_OF.get(line, line) for line in lines if line and _normalised(line) not in LARGE]


def pinned(report_of_pip: dict[str, Any]) -> list[str]:
    """All packages of the report of ``pip install`` as ``name==version``, without what is too large."""
    found = [item["metadata"] for item in report_of_pip["install"]]
    return [f"{item['name']}=={item['version']}" for item in found if _normalised(item["name"]) not in LARGE]


def report(folder: Path) -> int:
    """Prints the size of the folder; the status is 1 if it is larger than the limit, or lacks a requirement."""
    sizes = {wheel.name: wheel.stat().st_size for wheel in folder.glob("*.whl")}
    total = sum(sizes.values())
    print(f"{len(sizes)} wheels, {total / 2**20:.1f} MiB of {LIMIT_BYTES // 2**20} in {folder}")
    errors = []
    if total > LIMIT_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        errors.append(f"too large; the largest: {', '.join(largest)}")
    if lacking := unmet(folder):
        errors.append(f"missing: {', '.join(lacking)}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return int(bool(errors))


def unmet(folder: Path) -> list[str]:
    """What the wheels of a folder need on the target without extras, and what is neither in it nor too large."""
    from packaging.requirements import Requirement  # only here: a GPU machine may not have it

    wheels = [_metadata(path) for path in folder.glob("*.whl")]
    present = {_normalised(wheel["Name"]) for wheel in wheels} | LARGE
    needs = [Requirement(line) for wheel in wheels for line in wheel.get_all("Requires-Dist", [])]
    needed = {_normalised(need.name) for need in needs if need.marker is None or need.marker.evaluate(_TARGET)}
    return sorted(needed - present)


@dataclass(frozen=True)
class Unpacked:
    """What became of the wheels of packages that this Python lacks.

    Attributes:
        done: The packages that were unpacked.
        unfit: Those whose wheels are for another Python or CPU.
    """

    done: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()


def unpack_missing(folder: Path, target: Path) -> Unpacked:
    """Unpacks the wheels of packages that this Python lacks; one that is installed is never replaced.

    Args:
        folder: The folder of wheels; it need not exist.
        target: The folder to unpack to, for PYTHONPATH.
    """
    done, unfit = [], []
    for path in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            if any(is_installed(module) for module in modules(wheel)):
                continue
            name = path.name.partition("-")[0]
            if not fits(path.name):
                unfit.append(name)
                continue
            wheel.extractall(target)
            done.append(name)
    return Unpacked(tuple(done), tuple(unfit))


def modules(wheel: zipfile.ZipFile) -> set[str]:
    """The names that a wheel adds to the top level of imports."""
    names = {name.partition("/")[0] if "/" in name else _module_of_file(name) for name in wheel.namelist()}
    return {name for name in names if name.isidentifier()}  # not name-1.0.dist-info


def _module_of_file(name: str) -> str:
    return name.partition(".")[0] if name.endswith((".py", ".so")) else ""


def fits(wheel: str) -> bool:
    """Whether a wheel is for this Python and CPU, by the tags in its name.

    Example:
        >>> fits("dill-0.4.1-py3-none-any.whl"), fits("regex-1.0-cp27-cp27mu-manylinux2014_x86_64.whl")
        (True, False)
    """
    abi, platforms = wheel.removesuffix(".whl").split("-")[-2:]
    ours = f"cp{sys.version_info.major}{sys.version_info.minor}"
    linux = platforms.startswith("manylinux") and platforms.endswith(f"_{platform.machine()}")
    return abi in {"none", "abi3", ours} and (platforms == "any" or linux)


def is_installed(module: str) -> bool:
    """Whether Python finds a package, without importing it."""
    return importlib.util.find_spec(module) is not None


def _metadata(path: Path) -> Message:
    with zipfile.ZipFile(path) as wheel:
        name = next(name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return email.message_from_bytes(wheel.read(name))


def _normalised(requirement: str) -> str:
    """The name of a requirement, as all spellings of it have it."""
    name = re.match(r"[\w.-]*\w", requirement.strip())
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


if __name__ == "__main__":
    sys.exit(download())
