"""Sends what one rank has made of the data to others: arrays of the cache by their place, everything else by value."""

from __future__ import annotations

import io
import pickle
from typing import Any

from disttrain.data.array_cache import Arrays, array_place, find_arrays


class NotCachedError(Exception):
    """An array is not in the cache of this host."""


def pack(value: Any) -> bytes:
    """A value as bytes for `unpack`, in which a mapped array of the cache takes some bytes only."""
    data = io.BytesIO()
    _Packer(data, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return data.getvalue()


def unpack(data: bytes) -> Any:
    """The value that another rank of the run has packed, with its arrays mapped from the cache of this host.

    Raises:
        NotCachedError: The cache of this host does not have them.
    """
    return _Unpacker(io.BytesIO(data)).load()


class _Packer(pickle.Pickler):
    def persistent_id(self, value: Any) -> tuple[str, str] | None:
        return array_place(value)


class _Unpacker(pickle.Unpickler):
    def __init__(self, data: io.BytesIO) -> None:
        super().__init__(data)
        self._found: dict[str, Arrays] = {}

    def persistent_load(self, place: tuple[str, str]) -> Any:
        key, name = place
        if key not in self._found:
            arrays = find_arrays(key)
            if arrays is None:
                raise NotCachedError(key)
            self._found[key] = arrays
        return self._found[key][name]
