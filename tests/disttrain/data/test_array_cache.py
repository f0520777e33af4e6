"""The array cache: arrays are made once, made again if damaged, and usable if the cache cannot be written."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disttrain.data import array_cache
from disttrain.data.array_cache import (
    Append,
    cache_folder,
    cache_notices,
    content_key,
    find_arrays,
    free_bytes,
    mapped_arrays,
)

KEY = content_key([b"of these tests"])


class Maker:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, append: Append) -> None:
        self.calls += 1
        append("numbers", np.arange(6, dtype=np.int32).reshape(3, 2))
        append("numbers", np.arange(6, 8, dtype=np.int32).reshape(1, 2))
        append("none", np.empty((0, 3), dtype=np.uint8))


def check(arrays: array_cache.Arrays) -> None:
    assert arrays["numbers"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert arrays["numbers"].dtype == np.int32
    assert arrays["none"].shape == (0, 3)


def test_the_second_call_reads_the_cache(cache: Path) -> None:
    make = Maker()
    for _ in range(2):
        arrays = mapped_arrays(KEY, make)
        check(arrays)
        assert isinstance(arrays["numbers"].base, np.memmap)
        assert not arrays["numbers"].flags.writeable
    assert make.calls == 1
    assert [path.name for path in cache.iterdir()] == [KEY], "no temporary folder is left"


def test_a_key_depends_on_each_part() -> None:
    keys = {content_key(parts) for parts in ([b"ab"], [b"a", b"b"], [b"", b"ab"], [b"ab", b""], [])}
    assert len(keys) == 5
    assert content_key(iter([b"a", b"b"])) == content_key([b"a", b"b"])


@pytest.mark.parametrize("name", ["numbers", "none", "arrays.json"])
@pytest.mark.parametrize("damage", [os.unlink, lambda path: path.write_bytes(path.read_bytes()[:7] + b"\0")])
def test_damaged_arrays_are_made_again(name: str, damage: Callable[[Path], Any], cache: Path) -> None:
    make = Maker()
    mapped_arrays(KEY, make)
    damage(cache / KEY / name)
    assert find_arrays(KEY) is None
    check(mapped_arrays(KEY, make))
    assert make.calls == 2
    check(find_arrays(KEY) or {})


def test_mapped_arrays_survive_removed_files(cache: Path) -> None:
    arrays = mapped_arrays(KEY, Maker())
    shutil.rmtree(cache)
    check(arrays)


def test_an_unwritable_cache_is_no_error(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own folder on this host replaces it; without that each process makes the arrays."""
    cache.parent.mkdir()
    cache.write_text("not a folder")
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "own"))
    make = Maker()
    check(mapped_arrays(KEY, make))
    check(mapped_arrays(KEY, make))
    own = tmp_path / "own" / f"disttrain-{os.getuid()}"
    assert (make.calls, cache_folder(), stat.S_IMODE(own.stat().st_mode)) == (1, own, 0o700)
    notice = f"{cache.parent} cannot be written: what is made of the data is kept in {own} on this host"
    assert cache_notices() == (notice,)
    shutil.rmtree(own)
    own.symlink_to(tmp_path)  # another user may have made it
    check(mapped_arrays(KEY, make))
    check(mapped_arrays(KEY, make))
    assert make.calls == 3
    assert free_bytes() == 0


def test_a_disk_that_fills_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def make(append: Append) -> None:
        calls.append(append)
        append("rows", np.zeros(10))
        if len(calls) == 1:  # from now on, writes to this file fail
            (temporary,) = cache.iterdir()
            (temporary / "more").symlink_to("/dev/full")
        append("more", np.zeros(1_000_000))

    assert len(mapped_arrays(KEY, make)["more"]) == 1_000_000
    assert len(calls) == 2
    assert list(cache.iterdir()) == []


def test_an_error_leaves_no_files(cache: Path) -> None:
    def make(append: Append) -> None:
        append("rows", np.zeros(10))
        raise FileNotFoundError("an image")

    with pytest.raises(FileNotFoundError, match="an image"):
        mapped_arrays(KEY, make)
    assert list(cache.iterdir()) == []


def test_concurrent_callers_agree(cache: Path) -> None:
    def make_slowly(append: Append) -> None:
        time.sleep(0.05)
        Maker()(append)

    with ThreadPoolExecutor(8) as threads:
        for arrays in threads.map(lambda _: mapped_arrays(KEY, make_slowly), range(8)):
            check(arrays)
    assert [path.name for path in cache.iterdir()] == [KEY]


def test_abandoned_folders_are_removed(cache: Path) -> None:
    names = (f".{KEY}-dead", f".{KEY}-alive", f".{'b' * 64}-dead")
    abandoned, in_use, other_key = (cache / name for name in names)
    for folder in (abandoned, in_use, other_key):
        folder.mkdir(parents=True)
        (folder / "pixels").write_bytes(b"some")
        long_ago = time.time() - 2 * array_cache._ABANDONED_AFTER_S
        os.utime(folder / "pixels", (long_ago, long_ago) if folder is not in_use else None)
        os.utime(folder, (long_ago, long_ago))
    mapped_arrays(KEY, Maker())
    assert {path for path in (abandoned, in_use, other_key) if path.exists()} == {in_use, other_key}


def test_free_space_of_the_cache_disk(cache: Path) -> None:
    assert abs(free_bytes() - shutil.disk_usage(cache).free) < 1 << 30
