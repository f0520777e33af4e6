"""The folder of wheels for a GPU machine without a registry: `make gpu-wheels` fills it, `make gpu` uses it there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "gpu-wheels"
LIMIT_BYTES = 60 * 2**20
PYTHON = "3.12"
# What is imported, and its distribution. Not torch, torchvision, numpy, pandas and pyarrow: they are too large.
PACKAGES = {
    "annotated_types": "annotated-types",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "typing_inspection": "typing-inspection",
    "typing_extensions": "typing-extensions",
    "datasets": "datasets",
    "dill": "dill",
    "multiprocess": "multiprocess",
    "xxhash": "xxhash",
    "fsspec": "fsspec",
    "httpx": "httpx",
    "httpcore": "httpcore",
    "h11": "h11",
    "anyio": "anyio",
    "certifi": "certifi",
    "idna": "idna",
    "requests": "requests",
    "urllib3": "urllib3",
    "charset_normalizer": "charset-normalizer",
    "tqdm": "tqdm",
    "packaging": "packaging",
    "filelock": "filelock",
    "yaml": "pyyaml",
    "psutil": "psutil",
    "pynvml": "nvidia-ml-py",
    "submitit": "submitit",
    "cloudpickle": "cloudpickle",
    "typer": "typer",
    "click": "click",
    "shellingham": "shellingham",
    "rich": "rich",
    "pygments": "pygments",
    "markdown_it": "markdown-it-py",
    "mdurl": "mdurl",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface-hub",
    "hf_xet": "hf-xet",
    "regex": "regex",
    "PIL": "pillow",
    "accelerate": "accelerate",
}
_NEEDS_TORCH = {"accelerate"}
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def download() -> int:
    """Fills the folder with versions that fit together, and prints its size.

    Returns:
        The exit status: 1 if it is larger than the limit.
    """
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "--quiet"]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    target = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]
    # First the versions, with all that they need; then only the files of these packages.
    with tempfile.TemporaryDirectory() as unused:
        dry_run = ["--dry-run", "--ignore-installed", "--report", "-", "--target", unused]
        names = sorted({*PACKAGES.values()} - _NEEDS_TORCH)
        resolved = subprocess.run(
            [*pip, "install", *dry_run, *target, *names], check=True, stdout=subprocess.PIPE, text=True
        )
    wanted = [*pinned(json.loads(resolved.stdout)), *sorted(_NEEDS_TORCH)]
    subprocess.run([*pip, "download", "--no-deps", *target, "--dest", str(FOLDER), *wanted], check=True)
    return report(FOLDER)


def pinned(report_of_pip: dict[str, Any]) -> list[str]:
    """The packages of the folder as ``name==version``, from the report of ``pip install``."""
    versions = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report_of_pip["install"]}
    normalised = {name.replace("_", "-").replace(".", "-"): version for name, version in versions.items()}
    return [f"{name}=={normalised[name]}" for name in PACKAGES.values() if name in normalised]


def report(folder: Path) -> int:
    """Prints the size of the folder; the status is 1 if it is larger than the limit."""
    sizes = {wheel.name: wheel.stat().st_size for wheel in folder.glob("*.whl")}
    total = sum(sizes.values())
    print(f"{len(sizes)} wheels, {total / 2**20:.1f} MiB of {LIMIT_BYTES // 2**20} in {folder}")
    if total > LIMIT_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        print(f"error: too large; the largest: {', '.join(largest)}", file=sys.stderr)
        return 1
    return 0


def unpack_missing(folder: Path, target: Path) -> tuple[str, ...]:
    """Unpacks the wheels of packages that this Python lacks; one that is installed is never replaced.

    Args:
        folder: The folder of wheels; it need not exist.
        target: The folder to unpack to, for PYTHONPATH.

    Returns:
        The distributions that were unpacked.
    """
    unpacked = []
    for module, distribution in PACKAGES.items():
        if is_installed(module):
            continue
        wheels = sorted(folder.glob(f"{distribution.replace('-', '_')}-*.whl"))
        if wheels:
            with zipfile.ZipFile(wheels[-1]) as wheel:
                wheel.extractall(target)
            unpacked.append(distribution)
    return tuple(unpacked)


def is_installed(module: str) -> bool:
    """Whether Python finds a package, without importing it."""
    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    sys.exit(download())
