"""Whether a path of a sweep leads to the data of its earlier submissions, which may have been moved or copied."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

# Up to this size in all, the content of files is read; above it their times must agree too, as after mv and cp -p. A
# login node should not read more, nor look up more files.
_MOST_BYTES = 64 << 20
_MOST_FILES = 10_000


def is_same_data(before: str, now: str, fingerprints: Mapping[str, str]) -> bool:
    """Whether two paths of a config field are the same data.

    Args:
        before: The path of an earlier submission; it may be gone.
        now: The path of this one. A hub id is only the same as itself.
        fingerprints: What earlier submissions have recorded, by path.
    """
    if before == now:
        return True
    recorded = fingerprints.get(before) or fingerprint(before)
    return recorded is not None and recorded == fingerprint(now)


def fingerprint(path: str) -> str | None:
    """A digest of the files at a path; None for a hub id, without files, or if there are too many."""
    if not os.path.isabs(path):
        return None
    files = []
    for file in _files(Path(path)):
        files.append(file)
        if len(files) > _MOST_FILES:
            return None
    if not files:
        return None
    sizes = {file: file.stat() for file in files}
    small = sum(stat.st_size for stat in sizes.values()) <= _MOST_BYTES
    digest = hashlib.sha256(b"content" if small else b"times")
    for file in sorted(files):
        digest.update(f"\0{os.path.relpath(file, path)}\0{sizes[file].st_size}\0".encode("utf-8", "surrogateescape"))
        digest.update(file.read_bytes() if small else f"{sizes[file].st_mtime_ns}".encode())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """The files at a path. Links to folders are followed, as by the reader of the data, each folder once."""
    if path.is_file():
        yield path
    seen: set[str] = set()
    for folder, names, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        yield from (Path(folder, file) for file in files if os.path.isfile(os.path.join(folder, file)))
