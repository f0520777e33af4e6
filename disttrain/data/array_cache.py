"""Arrays that are made once, kept beside the caches of `datasets`, and mapped into memory by every process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import datasets
import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
# Adds rows to the end of the array of this name.
Append = Callable[[str, NDArray[Any]], None]

# Part of every key: arrays of another layout are not found.
FORMAT = 1
# Written last: name to dtype and shape of each array.
_CONTENTS = "arrays.json"
# A folder that a process was killed in is left over; one that is written to is younger than this.
_LEFT_OVER_S = 3600.0


class _CannotWriteError(Exception):
    """The cache takes no more: read-only, full, over quota."""


def content_key(parts: Iterable[bytes]) -> str:
    """The key of arrays that are made from these parts and from nothing else: a SHA-256, some 10^9 bytes a second."""
    digest = hashlib.sha256(b"%d" % FORMAT)
    for part in parts:
        digest.update(b"\0%d\0" % len(part))
        digest.update(part)
    return digest.hexdigest()


def mapped_arrays(key: str, make: Callable[[Append], None]) -> Arrays:
    """The arrays of a key as `cached_arrays` gives them, or else in memory: of each process its own copy."""
    kept = cached_arrays(key, make)
    return arrays_in_memory(make) if kept is None else kept


def cached_arrays(key: str, make: Callable[[Append], None]) -> Arrays | None:
    """The arrays of a key: found in the cache, or made and kept there.

    The processes of a host that map them share one copy in the page cache.

    Args:
        key: What `content_key` gives for all that the arrays depend on.
        make: Makes them, in rows that it appends. It may be called again.

    Returns:
        The arrays by name, read-only; None where the cache cannot be written: it is read-only, or full.
    """
    found = find_arrays(key)
    if found is not None:
        return found
    folder = _cache_folder() / key
    # Beside its final place, so that a rename suffices, and this process's own, on a file system that hosts share.
    temporary = folder.with_name(f".{key}-{uuid.uuid4().hex}")
    try:
        files = _Files(temporary)
        try:
            make(files.append)
            made = files.arrays()
        finally:
            files.close()
        _move(temporary, folder)
        # Of two processes the faster wins: the others may map its copy by now.
        return find_arrays(key) or made
    except _CannotWriteError:
        return None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def arrays_in_memory(make: Callable[[Append], None]) -> Arrays:
    """The arrays that are not worth a place in the cache."""
    parts: dict[str, list[NDArray[Any]]] = {}
    make(lambda name, rows: parts.setdefault(name, []).append(rows))
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def find_arrays(key: str) -> Arrays | None:
    """The arrays of a key; None where they were not made, or are damaged."""
    return _read(_cache_folder() / key)


def free_bytes() -> int:
    """What the disk of the cache has left; 0 where it cannot be written."""
    folder = _cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0
    except OSError:
        return 0


def _cache_folder() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "disttrain"


def _read(folder: Path) -> Arrays | None:
    try:
        contents = json.loads((folder / _CONTENTS).read_text(encoding="utf-8"))
        return {name: _map(folder / name, np.dtype(dtype), shape) for name, (dtype, shape) in contents.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _map(path: Path, dtype: np.dtype[Any], shape: list[int]) -> NDArray[Any]:
    size = int(np.prod(shape)) * dtype.itemsize
    if path.stat().st_size != size:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, not {size}")
    if size == 0:
        return np.empty(shape, dtype)  # nothing that could be mapped
    # As a plain array: each slice of a memmap is a memmap, which costs more than the slice.
    return np.asarray(np.memmap(path, dtype, "r", shape=tuple(shape)))


class _Files:
    """Rows that are appended to arrays in files.

    Never through a mapping: a disk that fills up is then an error, not a bus error.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, IO[bytes]] = {}
        self._contents: dict[str, tuple[str, list[int]]] = {}  # dtype and shape so far
        with _writing():
            _remove_left_over(folder)
            folder.mkdir(parents=True)

    def append(self, name: str, rows: NDArray[Any]) -> None:
        with _writing():
            if name not in self._open:
                self._open[name] = (self._folder / name).open("wb")
                self._contents[name] = (rows.dtype.str, [0, *rows.shape[1:]])
            dtype, shape = self._contents[name]
            assert (rows.dtype.str, [*rows.shape[1:]]) == (dtype, shape[1:]), f"rows of {name} are not of one kind"
            self._open[name].write(np.ascontiguousarray(rows).data)
            shape[0] += len(rows)

    def arrays(self) -> Arrays:
        """All of them, mapped; they outlive the folder's place and name."""
        self.close()
        with _writing():
            (self._folder / _CONTENTS).write_text(json.dumps(self._contents), encoding="utf-8")
        made = _read(self._folder)
        if made is None:
            raise _CannotWriteError
        return made

    def close(self) -> None:
        with _writing():
            for file in self._open.values():
                file.close()  # where some file systems first say that they are full


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _CannotWriteError from error


def _remove_left_over(folder: Path) -> None:
    """Removes the temporary folders of this key that killed processes have left: some GB each, of images."""
    for other in folder.parent.glob(f"{folder.name.split('-', 1)[0]}-*"):
        with suppress(OSError):  # its process may be at work, or another may remove it too
            written_s = max(path.stat().st_mtime for path in (other, *other.iterdir()))
            if time.time() - written_s > _LEFT_OVER_S:
                shutil.rmtree(other, ignore_errors=True)


def _move(temporary: Path, folder: Path) -> None:
    """Renames the folder to its final place, if that is free or holds what is damaged."""
    with suppress(OSError):
        temporary.rename(folder)
        return
    if _read(folder) is None:
        # Aside first: between a look and a removal another process may have put a whole one there.
        aside = temporary.with_name(f"{temporary.name}-damaged")
        with suppress(OSError):
            folder.rename(aside)
            temporary.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
