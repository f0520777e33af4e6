"""Image files that cannot be decoded end a run with one line, or are left out on every rank."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from disttrain.config.train_config import TrainConfig
from disttrain.data import image_decoder
from disttrain.data.batches import load_batches
from disttrain.data.pixels import BrokenImageError, decode_image
from disttrain.data.splits import Splits, load_splits
from disttrain.distributed.group import Group
from disttrain.environment.rank_env import RankEnv
from disttrain.errors import UserError
from disttrain.models.family import EncodedSplits
from disttrain.models.vit import encode
from disttrain.run import run
from tests.disttrain.ranks import ALONE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")


def image_file(kind: str, seed: int = 0, width: int = 40, height: int = 30) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header gives this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


BROKEN: Mapping[str, bytes] = {
    "truncated jpeg": image_file("JPEG")[:-300],
    "truncated png": image_file("PNG")[:-300],
    "truncated header": image_file("JPEG")[:20],
    "empty": b"",
    "text": b"<html>404 Not Found</html>",
    "zeros": bytes(5000),
    "bomb": png_of(30000, 30000),
    "beyond any memory": png_of(2**31 - 1, 2**31 - 1),
    "tiff that points nowhere": b"II*\x00\xff\xff\xff\x7f",
    "gif without a picture": b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_reported(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(BROKEN[name])
    for value in ({"bytes": BROKEN[name], "path": None}, {"bytes": None, "path": str(path)}):
        with pytest.raises(BrokenImageError) as caught:
            decode_image(value)
        assert "an image cannot be decoded: " in str(caught.value)
        assert " at 0x" not in str(caught.value), "the message is the same in every run"
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_random_damage_is_decoded_or_reported(kind: str) -> None:
    intact = image_file(kind)
    draw = random.Random(kind)
    for _ in range(150):
        damaged = bytearray(intact[: draw.randrange(len(intact))] if draw.random() < 0.5 else intact)
        for _ in range(draw.randrange(8)):
            if damaged:
                damaged[draw.randrange(min(len(damaged), 200))] = draw.randrange(256)
        with contextlib.suppress(BrokenImageError):
            assert decode_image({"bytes": bytes(damaged), "path": None}).mode == "RGB"


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": None}, {"bytes": None, "path": "/no/such.jpg"}])
def test_a_missing_image_is_broken(value: dict[str, Any] | None) -> None:
    with pytest.raises(BrokenImageError):
        decode_image(value)


def test_an_unreadable_file_is_not_broken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an image cannot be read: Is a directory") as caught:
        decode_image({"bytes": None, "path": str(tmp_path)})
    assert not isinstance(caught.value, BrokenImageError)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images <split>/<class>/<image>: 20 for training, four of them broken, and 6 intact ones for evaluation."""
    broken = {3: "truncated jpeg", 8: "empty", 9: "text", 15: "bomb"}
    for split, count in (("train", 20), ("test", 6)):
        for number in range(count):
            path = tmp_path / "data" / split / ("cat", "dog")[number // (count // 2)] / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            is_broken = split == "train" and number in broken
            path.write_bytes(BROKEN[broken[number]] if is_broken else image_file("JPEG", number, 20 + number))
    return tmp_path / "data"


@pytest.fixture(params=["cached", "too large to cache"])
def room(request: pytest.FixtureRequest, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "cached":
        monkeypatch.setattr(image_decoder, "CACHE_LIMIT_BYTES", 0)
    return str(request.param)


def opened(config: TrainConfig, folder: Path, **fields: Any) -> tuple[Splits, EncodedSplits]:
    config = dataclasses.replace(config, dataset=str(folder), **fields).resolved()
    splits = load_splits(config, "image")
    return splits, encode(config, splits, ALONE, Path())


def test_broken_images_are_left_out(room: str, folder: Path, vit_config: TrainConfig) -> None:
    for _ in range(2):  # the second time from the cache
        splits, encoded = opened(vit_config, folder, broken_images="skip")
        (notice,) = encoded.notices
        paths = [folder / "train" / "cat" / f"{number:02d}.jpg" for number in (3, 8, 9)]
        assert notice == (
            "left out 4 of 20 images of train that cannot be decoded:"
            f" row 3 ({paths[0]}), row 8 ({paths[1]}), row 9 ({paths[2]}), ..."
        )
        assert (len(encoded.train), len(encoded.eval or ())) == (16, 6)
        assert encoded.train.in_memory == (room == "cached")
        batch = encoded.train.batch(range(16))
        assert batch["labels"].tolist() == [0] * 7 + [1] * 9
        _, intact = opened(vit_config, folder / "test", max_eval_examples=0)
        assert splits.label_names == intact.label_names


def test_a_subset_reports_rows_of_the_dataset(room: str, folder: Path, vit_config: TrainConfig) -> None:
    splits, encoded = opened(vit_config, folder, broken_images="skip", max_train_examples=12)
    (notice,) = encoded.notices
    named = sorted(set(splits.train.numbers.tolist()) & {3, 8, 9, 15})
    assert 0 < len(named) <= 3, "the notice names all of them"
    assert notice.startswith(f"left out {len(named)} of 12 images of train")
    for number in named:
        assert f"row {number} (" in notice
        assert f"/{number:02d}.jpg" in notice


def test_broken_images_end_the_run_by_default(folder: Path, vit_config: TrainConfig, cache: Path) -> None:
    first = folder / "train" / "cat" / "03.jpg"
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            opened(vit_config, folder)
        assert str(caught.value).startswith(
            f"4 of 20 images of train cannot be decoded, the first in row 3 ({first}): image file is truncated"
        )
        assert str(caught.value).endswith("(broken_images: skip leaves out images that cannot be decoded)")


def test_a_split_without_intact_images(room: str, folder: Path, vit_config: TrainConfig) -> None:
    for path in folder.glob("test/*/*"):
        path.write_bytes(BROKEN["text"])
    message = r"6 of 6 images of test cannot be decoded, the first in row 0 \(.*known format$"
    with pytest.raises(UserError, match=message):
        opened(vit_config, folder, broken_images="skip")


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_a_large_split_fails_at_the_broken_image(
    workers: int, folder: Path, vit_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_decoder, "CACHE_LIMIT_BYTES", 0)
    _, encoded = opened(vit_config, folder)
    lists = [np.array([0, 1]), np.array([2, 9]), np.array([4])]
    batches = load_batches(encoded.train, lists, torch.device("cpu"), workers)
    assert next(batches)["labels"].tolist() == [0, 0]
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == (
        f"the image in row 9 ({folder}/train/cat/09.jpg) of train cannot be decoded:"
        " it is not an image in a known format (broken_images: skip leaves out images that cannot be decoded)"
    )


@pytest.mark.parametrize(
    ("broken_on_rank_0", "message"),
    [
        (None, r"4 of 20 images of train cannot be decoded"),  # rank 0 had no room and did not read the images
        (np.array([3, 8]), r"hosts first and \S+ can decode different images of train \(are the files the same\?\)"),
    ],
)
def test_hosts_that_decode_different_images(
    broken_on_rank_0: Any,
    message: str,
    folder: Path,
    vit_config: TrainConfig,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Group, "broadcast_from_main", lambda _, own: own if isinstance(own, bool) else broken_on_rank_0)
    config = dataclasses.replace(vit_config, dataset=str(folder)).resolved()
    second = dataclasses.replace(ALONE, hosts=("first", "second"))
    with pytest.raises(UserError, match=message):
        encode(config, load_splits(config, "image"), second, Path())


def without_room_after_rank_0(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    if env.rank > 0:
        vars(image_decoder).update(find_arrays=lambda _: None, free_bytes=lambda: 0)
    run(config, env, output_dir)


@pytest.mark.parametrize("target", [run, without_room_after_rank_0])
def test_all_ranks_leave_out_the_same_images(
    target: Callable[..., Any], folder: Path, vit_config: TrainConfig, run_ranks: Callable[..., Any]
) -> None:
    config = dataclasses.replace(vit_config, dataset=str(folder), broken_images="skip", max_steps=None, epochs=1)
    finished = run_ranks(config, 2, target=target)
    assert finished.exit_codes == (0, 0)
    assert sum(step.examples for rank in range(2) for step in finished.steps(rank)) == 16
    assert any(notice.startswith("left out 4 of 20 images") for notice in finished.summary["notices"])


def test_all_ranks_refuse_broken_images(folder: Path, vit_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    finished = run_ranks(dataclasses.replace(vit_config, dataset=str(folder)), 2)
    for rank in range(2):
        failure = json.loads((finished.output_dir / f"failure-rank{rank:05d}.json").read_text())
        assert failure["user_error"]
        assert failure["message"].startswith("4 of 20 images of train cannot be decoded")
