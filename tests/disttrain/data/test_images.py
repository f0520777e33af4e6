"""Images from the cache are equal, bit by bit, to images that are decoded each time."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from disttrain.config.train_config import TrainConfig
from disttrain.data import image_decoder
from disttrain.data.batches import Indices
from disttrain.data.files.columns import dataset_table
from disttrain.data.images import DecodedImages, ImageFiles, open_images
from disttrain.data.splits import Split, load_splits
from disttrain.distributed import group as dist
from disttrain.environment.rank_env import RankEnv
from disttrain.models.normalisation import Normalisation
from disttrain.models.vit import ImageClassifier, build, encode
from disttrain.run import run
from tests.disttrain.ranks import ALONE

SIZE = 24


def image_file(
    number: int, width: int, height: int, mode: str = "RGB", kind: str = "JPEG", orientation: int = 1
) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).convert(mode).save(file, kind, exif=exif)
    return file.getvalue()


# Greyscale, CMYK, palette, transparent, rotated by EXIF, and formats for which Pillow loads plugins.
OF_ONE_SIZE = [
    *(image_file(number, 20, 12) for number in range(9)),
    image_file(10, 20, 12, "L"),
    image_file(11, 20, 12, "CMYK"),
    image_file(12, 12, 20, orientation=6),
    image_file(13, 20, 12, orientation=3),
    *(image_file(number, 20, 12, mode, "PNG") for number, mode in enumerate(("L", "P", "RGBA", "LA", "1", "I;16"), 20)),
    image_file(30, 20, 12, kind="WEBP"),
    image_file(31, 20, 12, kind="TIFF"),
]
OF_MANY_SIZES = [*OF_ONE_SIZE, image_file(40, 50, 7), image_file(41, 24, 24), image_file(42, 3, 90, "RGBA", "PNG")]
LARGE = [image_file(number, 40, 30) for number in range(4)]


def split_of(files: Sequence[bytes | None], paths: Sequence[str | None] | None = None) -> Split:
    values = [{"bytes": file, "path": path} for file, path in zip(files, paths or [None] * len(files), strict=True)]
    features = datasets.Features(image=datasets.Image(decode=False))
    rows = dataset_table(datasets.Dataset.from_dict({"image": values}, features=features))
    return Split(rows, np.arange(len(files)) % 2, "train", np.arange(len(files)))


def opened(split: Split, size: int = SIZE) -> DecodedImages | ImageFiles:
    return open_images(split, "image", size, "refuse", ALONE).examples


def model_input(examples: DecodedImages | ImageFiles, indices: Indices) -> torch.Tensor:
    class Echo(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor, **_: bool) -> Any:
            return type("Output", (), {"logits": pixel_values})

    seen: torch.Tensor = ImageClassifier(Echo(), Normalisation(), SIZE)(examples.batch(indices))
    return seen


@pytest.mark.parametrize(
    ("files", "shape"),
    [
        (OF_ONE_SIZE, (12, 20)),
        (OF_MANY_SIZES, (SIZE, SIZE)),
        (OF_MANY_SIZES[::-1], (SIZE, SIZE)),
        (LARGE, (SIZE, SIZE)),
    ],
    ids=["of one size", "of many sizes", "of many sizes, large first", "larger than the model's input"],
)
def test_the_model_sees_the_same_pixels(files: list[bytes], shape: tuple[int, int], cache: Path) -> None:
    split = split_of(files)
    decoded = opened(split)
    assert isinstance(decoded, DecodedImages)
    assert decoded.pixels.shape == (len(files), 3, *shape)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.in_memory
    each_time = ImageFiles(split, "image", SIZE)
    order = np.random.default_rng(0).permutation(len(files))
    assert torch.equal(model_input(decoded, order), model_input(each_time, order))
    assert torch.equal(decoded.batch([1, 0])["labels"], each_time.batch([1, 0])["labels"])


def fail_if_decoded_again(*_: Any) -> None:
    raise AssertionError("decoded again")


@pytest.mark.parametrize("files", [OF_ONE_SIZE, OF_MANY_SIZES], ids=["of one size", "of many sizes"])
def test_the_next_run_decodes_nothing(files: list[bytes], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(split_of(files))
    monkeypatch.setattr(image_decoder.ImageDecoder, "_append_pixels", fail_if_decoded_again)
    monkeypatch.setattr(image_decoder, "free_bytes", lambda: 0)  # cached pixels need no more room
    second = opened(split_of(files, [f"{number}.jpg" for number in range(len(files))]))
    assert isinstance(first, DecodedImages)
    assert isinstance(second, DecodedImages)
    assert np.array_equal(first.pixels, second.pixels)
    assert isinstance(second.pixels.base, np.memmap)
    assert len(list(cache.iterdir())) == 1


def test_the_thread_count_of_torch_is_restored(cache: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        opened(split_of(OF_MANY_SIZES))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_cache_depends_on_content_order_and_size(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(LARGE[0])
    on_disk = split_of([None, None], [str(path), str(path)])
    large = split_of(LARGE)
    subset = large.select(np.array([2, 0]))
    for count, (split, size) in enumerate(
        [(large, 16), (large, 24), (split_of(LARGE[::-1]), 16), (subset, 16), (on_disk, 16)], start=1
    ):
        for _ in range(2):
            opened(split, size)
            assert len(list(cache.iterdir())) == count
    later = path.stat().st_mtime_ns + 1
    path.write_bytes(LARGE[1])
    os.utime(path, ns=(later, later))
    changed = opened(on_disk, 16)
    assert torch.equal(changed.batch([0])["pixels"], opened(large, 16).batch([1])["pixels"])


@pytest.mark.parametrize("limit", ["the cache limit", "the disk"])
def test_a_large_split_is_decoded_each_time(limit: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_image = 3 * 12 * 20
    total = len(OF_ONE_SIZE) * one_image
    if limit == "the cache limit":
        monkeypatch.setattr(image_decoder, "CACHE_LIMIT_BYTES", total)
    else:
        monkeypatch.setattr(image_decoder, "free_bytes", lambda: 2 * total)
    assert isinstance(opened(split_of(OF_ONE_SIZE)), DecodedImages)
    assert isinstance(opened(split_of([*OF_ONE_SIZE, OF_ONE_SIZE[0]])), ImageFiles)
    assert isinstance(opened(split_of([*OF_ONE_SIZE[:-1], LARGE[0]])), ImageFiles), "a larger image after the first"
    assert isinstance(opened(split_of(OF_MANY_SIZES)), ImageFiles)


def test_rank_0_prints_its_progress(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dist, "SAY_EVERY_S", 0.0)
    monkeypatch.setattr(image_decoder, "_CHUNK", 2)
    opened(split_of(LARGE))
    assert capsys.readouterr().out == "decoding 0 of 4 images of train\ndecoding 2 of 4 images of train\n"


def test_scores_do_not_depend_on_the_cached_size(vit_config: TrainConfig, cache: Path) -> None:
    config = dataclasses.replace(vit_config, image_size=SIZE)
    splits = load_splits(config.resolved(), "image")
    splits = dataclasses.replace(splits, train=split_of(OF_ONE_SIZE), input_column="image", eval=None)
    encoded = encode(config, splits, ALONE, Path())
    assert encoded.train.batch([0])["pixels"].shape == (1, 3, 12, 20)
    model = build(config, encoded).model.eval()
    each_time = ImageFiles(splits.train, "image", SIZE)
    assert torch.equal(model(encoded.train.batch(range(9))), model(each_time.batch(range(9))))


def only_rank_0_decodes(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    if env.rank > 0:
        image_decoder.ImageDecoder._append_pixels = fail_if_decoded_again  # type: ignore[assignment, method-assign]
    run(config, env, output_dir)


def test_one_rank_decodes_for_all(vit_config: TrainConfig, run_ranks: Callable[..., Any], tmp_path: Path) -> None:
    for number in range(21):
        folder = tmp_path / "train" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(image_file(number, 20, 12))
    config = dataclasses.replace(vit_config, dataset=str(tmp_path), max_steps=3)
    finished = run_ranks(config, 3, target=only_rank_0_decodes)
    assert finished.exit_codes == (0, 0, 0)
