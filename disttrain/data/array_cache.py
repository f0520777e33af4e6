"""Caches arrays on disk, next to the caches of `datasets`, so that every process can map them into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
# Appends rows to the array with this name.
Append = Callable[[str, NDArray[Any]], None]

# Part of every key, so that arrays of an older layout are not found.
FORMAT = 1
# Written last; maps each array's name to its dtype and shape.
_CONTENTS = "arrays.json"
# The age after which a temporary folder belongs to a killed process; a folder in use has newer files.
_ABANDONED_AFTER_S = 3600.0


class _CannotWriteError(Exception):
    """The cache cannot be written: it is read-only, full or over quota."""


def content_key(parts: Iterable[bytes]) -> str:
    """The key of arrays that depend on these parts only: a SHA-256, computed at about 10^9 bytes per second."""
    digest = hashlib.sha256(b"%d" % FORMAT)
    for part in parts:
        digest.update(b"\0%d\0" % len(part))
        digest.update(part)
    return digest.hexdigest()


def mapped_arrays(key: str, make: Callable[[Append], None]) -> Arrays:
    """The arrays of a key from `cached_arrays`; if the cache cannot be written, a copy in this process's memory."""
    cached = cached_arrays(key, make)
    if cached is None:
        return arrays_in_memory(make)
    return cached


def cached_arrays(key: str, make: Callable[[Append], None]) -> Arrays | None:
    """The arrays of a key: read from the cache, or made and written to it.

    All processes of a host that map the arrays share one copy in the page cache.

    Args:
        key: The `content_key` of everything that the arrays depend on.
        make: A function that makes the arrays by appending rows. It may be called again.

    Returns:
        The arrays by name, read-only; None if the cache cannot be written.
    """
    existing = find_arrays(key)
    if existing is not None:
        return existing
    folder = cache_folder() / key
    # In the same folder as its final place, so that a rename is enough. The name is unique to this process, because
    # hosts may share the file system.
    temporary = folder.with_name(f".{key}-{uuid.uuid4().hex}")
    try:
        files = _Files(temporary)
        try:
            make(files.append)
            made = files.arrays()
        finally:
            files.close()
        _move(temporary, folder)
        # If two processes made the arrays, the first copy stays, because other processes may map it already.
        return find_arrays(key) or made
    except _CannotWriteError:
        return None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def arrays_in_memory(make: Callable[[Append], None]) -> Arrays:
    """Arrays that are too small to be worth caching."""
    parts: dict[str, list[NDArray[Any]]] = {}
    make(lambda name, rows: parts.setdefault(name, []).append(rows))
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def find_arrays(key: str) -> Arrays | None:
    """The cached arrays of a key; None if they do not exist or are damaged."""
    return _read(cache_folder() / key)


def array_place(array: object) -> tuple[str, str] | None:
    """The key and the name of an array that is mapped from the cache; None for any other object."""
    mapped = getattr(array, "base", None)
    if type(array) is not np.ndarray or not isinstance(mapped, np.memmap) or mapped.filename is None:
        return None
    is_whole = array.shape == mapped.shape and array.dtype == mapped.dtype and array.ctypes.data == mapped.ctypes.data
    path = Path(mapped.filename)  # NumPy has resolved it
    if not is_whole or path.parent.parent != cache_folder().resolve():
        return None
    return path.parent.name, path.name


def free_bytes() -> int:
    """The free space of the cache's disk; 0 if the cache cannot be written."""
    folder = cache_folder()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return shutil.disk_usage(folder).free
    return 0


def cache_folder() -> Path:
    """The folder of all that this package caches: in that of `datasets`, or the user's own if that is read-only.

    `datasets` need not be imported for it.
    """
    shared = datasets_cache() / "disttrain"
    if may_write(shared):
        return shared
    own = Path(tempfile.gettempdir()) / f"disttrain-{os.getuid()}"
    with suppress(OSError):
        own.mkdir(mode=0o700, exist_ok=True)
        if own.stat().st_uid == os.getuid() and not own.is_symlink():
            return own
    return shared


def cache_notices() -> tuple[str, ...]:
    """A notice if what is made of the data is not kept where later runs expect it."""
    shared, used = datasets_cache(), cache_folder()
    if used.is_relative_to(shared):
        return ()
    return (f"{shared} cannot be written: what is made of the data is kept in {used} on this host",)


def datasets_cache() -> Path:
    """The cache folder of `datasets`."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(os.environ.get("HF_DATASETS_CACHE") or os.path.join(home, "datasets")))


def may_write(folder: Path) -> bool:
    """Whether a folder can be written, or made."""
    for path in (folder, *folder.parents):
        if path.exists():
            return path.is_dir() and os.access(path, os.W_OK)
    return False


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
        return np.empty(shape, dtype)  # an empty file cannot be mapped
    # Converted to a plain array: each slice of a memmap is a memmap, which costs more than the slice.
    return np.asarray(np.memmap(path, dtype, "r", shape=tuple(shape)))


class _Files:
    """Arrays in files, to which rows are appended.

    The files are written, not mapped: if the disk fills up, a write raises an error, but a mapping causes a bus error.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, IO[bytes]] = {}
        self._contents: dict[str, tuple[str, list[int]]] = {}  # the dtype and the current shape
        with _writing():
            _remove_abandoned(folder)
            folder.mkdir(parents=True)

    def append(self, name: str, rows: NDArray[Any]) -> None:
        with _writing():
            if name not in self._open:
                self._open[name] = (self._folder / name).open("wb")
                self._contents[name] = (rows.dtype.str, [0, *rows.shape[1:]])
            dtype, shape = self._contents[name]
            assert (rows.dtype.str, [*rows.shape[1:]]) == (dtype, shape[1:]), f"rows of {name} differ in dtype or shape"
            self._open[name].write(np.ascontiguousarray(rows).data)
            shape[0] += len(rows)

    def arrays(self) -> Arrays:
        """All arrays, mapped; they stay usable after the folder is renamed or removed."""
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
                file.close()  # some file systems report only here that they are full


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _CannotWriteError from error


def _remove_abandoned(folder: Path) -> None:
    """Removes the temporary folders of this key that killed processes have left; with images each takes some GB."""
    for other in folder.parent.glob(f"{folder.name.split('-', 1)[0]}-*"):
        with suppress(OSError):  # another process may be writing to it, or removing it too
            written_s = max(path.stat().st_mtime for path in (other, *other.iterdir()))
            if time.time() - written_s > _ABANDONED_AFTER_S:
                shutil.rmtree(other, ignore_errors=True)


def _move(temporary: Path, folder: Path) -> None:
    """Renames the folder to its final place, unless intact arrays exist there."""
    with suppress(OSError):
        temporary.rename(folder)
        return
    if _read(folder) is None:
        # First moved aside: between the check and the removal another process may have put an intact folder there.
        aside = temporary.with_name(f"{temporary.name}-damaged")
        with suppress(OSError):
            folder.rename(aside)
            temporary.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
