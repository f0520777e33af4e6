"""Arrays that are made once: found again, made again where they are damaged, and used where they cannot be kept."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disttrain.data import array_cache as mapped
from disttrain.data.array_cache import Append, content_key, find_arrays, free_bytes, mapped_arrays

KEY = content_key([b"of these tests"])


class Maker:
    """Counts how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, append: Append) -> None:
        self.calls += 1
        append("numbers", np.arange(6, dtype=np.int32).reshape(3, 2))
        append("numbers", np.arange(6, 8, dtype=np.int32).reshape(1, 2))
        append("none", np.empty((0, 3), dtype=np.uint8))


def check(arrays: mapped.Arrays) -> None:
    assert arrays["numbers"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert arrays["numbers"].dtype == np.int32
    assert arrays["none"].shape == (0, 3)


def test_a_second_process_finds_what_the_first_has_made(cache: Path) -> None:
    make = Maker()
    for _ in range(2):
        arrays = mapped_arrays(KEY, make)
        check(arrays)
        assert isinstance(arrays["numbers"].base, np.memmap)
        assert not arrays["numbers"].flags.writeable
    assert make.calls == 1
    assert [path.name for path in cache.iterdir()] == [KEY], "nothing temporary is left"


def test_a_key_tells_its_parts_apart() -> None:
    keys = {content_key(parts) for parts in ([b"ab"], [b"a", b"b"], [b"", b"ab"], [b"ab", b""], [])}
    assert len(keys) == 5
    assert content_key(iter([b"a", b"b"])) == content_key([b"a", b"b"])


@pytest.mark.parametrize("name", ["numbers", "none", "arrays.json"])
@pytest.mark.parametrize("damage", [os.unlink, lambda path: path.write_bytes(path.read_bytes()[:7] + b"\0")])
def test_what_is_damaged_is_made_again(name: str, damage: Callable[[Path], Any], cache: Path) -> None:
    make = Maker()
    mapped_arrays(KEY, make)
    damage(cache / KEY / name)
    assert find_arrays(KEY) is None
    check(mapped_arrays(KEY, make))
    assert make.calls == 2
    check(find_arrays(KEY) or {})


def test_arrays_that_are_in_use_outlive_their_files(cache: Path) -> None:
    arrays = mapped_arrays(KEY, Maker())
    shutil.rmtree(cache)
    check(arrays)


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("not a folder")
    make = Maker()
    check(mapped_arrays(KEY, make))
    check(mapped_arrays(KEY, make))
    assert make.calls == 2
    assert free_bytes() == 0


def test_a_disk_that_fills_up_on_the_way(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def make(append: Append) -> None:
        calls.append(append)
        append("rows", np.zeros(10))
        if len(calls) == 1:  # from here on the file takes no more
            (temporary,) = cache.iterdir()
            (temporary / "more").symlink_to("/dev/full")
        append("more", np.zeros(1_000_000))

    assert len(mapped_arrays(KEY, make)["more"]) == 1_000_000
    assert len(calls) == 2
    assert list(cache.iterdir()) == []


def test_a_mistake_while_making_is_told_and_leaves_nothing(cache: Path) -> None:
    def make(append: Append) -> None:
        append("rows", np.zeros(10))
        raise FileNotFoundError("an image")

    with pytest.raises(FileNotFoundError, match="an image"):
        mapped_arrays(KEY, make)
    assert list(cache.iterdir()) == []


def test_many_at_once_agree(cache: Path) -> None:
    def slowly(append: Append) -> None:
        time.sleep(0.05)
        Maker()(append)

    with ThreadPoolExecutor(8) as threads:
        for arrays in threads.map(lambda _: mapped_arrays(KEY, slowly), range(8)):
            check(arrays)
    assert [path.name for path in cache.iterdir()] == [KEY]


def test_what_a_killed_process_left_is_removed_in_time(cache: Path) -> None:
    left, at_work, of_another = (cache / f".{name}" for name in (f"{KEY}-dead", f"{KEY}-alive", "b" * 64 + "-dead"))
    for folder in (left, at_work, of_another):
        folder.mkdir(parents=True)
        (folder / "pixels").write_bytes(b"some")
        long_ago = time.time() - 2 * mapped._LEFT_OVER_S
        os.utime(folder / "pixels", (long_ago, long_ago) if folder is not at_work else None)
        os.utime(folder, (long_ago, long_ago))
    mapped_arrays(KEY, Maker())
    assert {path for path in (left, at_work, of_another) if path.exists()} == {at_work, of_another}


def test_free_space_is_that_of_the_cache(cache: Path) -> None:
    assert abs(free_bytes() - shutil.disk_usage(cache).free) < 1 << 30
