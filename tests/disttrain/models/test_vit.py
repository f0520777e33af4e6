"""Batches of images, and models from an architecture or a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from disttrain.config.train_config import TrainConfig
from disttrain.data.splits import load_splits
from disttrain.errors import UserError
from disttrain.models.family import EncodedSplits
from disttrain.models.normalisation import Normalisation
from disttrain.models.vit import ImageClassifier, build, encode
from tests.disttrain.ranks import ALONE


def encoded_with(config: TrainConfig) -> EncodedSplits:
    return encode(config, load_splits(config.resolved(), "image"), ALONE, Path())


def test_a_batch_has_bytes_of_one_size(vit_config: TrainConfig) -> None:
    encoded = encoded_with(vit_config)
    batch = encoded.train.batch([0, 29, 15])
    assert batch["pixels"].shape == (3, 3, 16, 16)
    assert batch["pixels"].dtype == torch.uint8
    assert batch["labels"].tolist() == [0, 1, 1]
    # Cats are the darker half of the generated images.
    assert batch["pixels"][0].float().mean() < 90 < batch["pixels"][1].float().mean()


def test_pixels_are_normalised_by_mean_and_deviation() -> None:
    class Echo(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor, **_: bool) -> Any:
            return type("Output", (), {"logits": pixel_values})

    model = ImageClassifier(Echo(), Normalisation([0.5, 0.4, 0.3], [0.5, 0.2, 0.1]))
    pixels = torch.tensor([0, 102, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(model({"pixels": pixels}).flatten(), torch.tensor([-1.0, 0.0, 7.0]))
    assert model.state_dict() == {}


def test_a_checkpoint_with_other_size_and_classes(vit_config: TrainConfig, tmp_path: Path, capfd: Any) -> None:
    torch.manual_seed(0)
    encoded = encoded_with(vit_config)
    scratch = build(vit_config, dataclasses.replace(encoded, label_names=("a", "b", "c"))).model
    scratch.model.save_pretrained(tmp_path)  # type: ignore[operator, union-attr]
    capfd.readouterr()
    config = dataclasses.replace(vit_config, architecture=None, checkpoint=str(tmp_path), image_size=32)
    built = build(config, encoded_with(config))
    assert built.notices == (
        f"{tmp_path} has no head for 2 classes: classifier.bias, classifier.weight start at random",
        f"position embeddings of {tmp_path} interpolated from 16 to 32 pixels",
        f"{tmp_path} has no preprocessor_config.json: pixels normalised by mean and deviation 0.5",
    )
    assert built.model(encoded_with(config).train.batch([0, 1])).shape == (2, 2)
    assert capfd.readouterr() == ("", "")
    same = build(dataclasses.replace(config, image_size=16), dataclasses.replace(encoded, label_names=("a", "b", "c")))
    assert len(same.notices) == 1
    torch.testing.assert_close(same.model(encoded.train.batch([0])), scratch.eval()(encoded.train.batch([0])))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"patch_size": [8, 8]}, r"architecture.patch_size: patch_size is \[8, 8\] \(give an integer\)"),
        ({"patch_size": 5}, "image_size 16 is not a multiple of the patch size 5"),
        ({"image_size": 32}, r"architecture.image_size: 32 contradicts the run's 16 \(drop it here\)"),
        ({"vocab_size": 32}, "architecture.vocab_size: unknown field 'vocab_size' of ViTConfig"),
    ],
)
def test_architecture_mistakes_are_one_line(
    architecture: dict[str, Any], message: str, vit_config: TrainConfig
) -> None:
    config = dataclasses.replace(vit_config, architecture=architecture)
    with pytest.raises(UserError, match=message):
        build(config, encoded_with(config))


def _changed(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def checkpoint(vit_config: TrainConfig, tmp_path: Path) -> Path:
    """A saved ViT with its image processor."""
    built = build(vit_config, encoded_with(vit_config))
    assert built.save is not None
    (tmp_path / "start").mkdir()
    built.save(tmp_path / "start")
    return tmp_path / "start"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_channels": 1}, r"takes images of 1 channels \(images are read as RGB, 3 channels\)"),
        ({"image_size": [16, 32]}, r"has image_size \[16, 32\] \(it must be square\)"),
    ],
)
def test_a_checkpoint_for_other_images_is_refused(
    values: dict[str, Any], message: str, checkpoint: Path, vit_config: TrainConfig
) -> None:
    _changed(checkpoint, "config.json", **values)
    config = dataclasses.replace(vit_config, architecture=None, checkpoint=str(checkpoint))
    with pytest.raises(UserError, match=message):
        build(config, encoded_with(config))


def test_checkpoint_sizes_may_be_pairs(checkpoint: Path, vit_config: TrainConfig) -> None:
    _changed(checkpoint, "config.json", image_size=[16, 16], patch_size=[8, 8])
    config = dataclasses.replace(vit_config, architecture=None, checkpoint=str(checkpoint))
    encoded = encoded_with(config)
    built = build(config, encoded)
    assert built.notices == ()
    assert built.model(encoded.train.batch([0, 1])).shape == (2, 2)


@pytest.mark.parametrize(
    ("values", "mean", "scale"),
    [
        ({"image_mean": None, "image_std": None}, 127.5, 1 / 127.5),
        ({"do_normalize": False, "image_mean": [0.4] * 3}, 0.0, 1 / 255),
        ({"image_mean": 0.4, "image_std": 0.2}, 102.0, 1 / 51),
        ({"do_rescale": False, "image_mean": [102.0] * 3, "image_std": [51.0] * 3}, 102.0, 1 / 51),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, 127.5, 1 / 127.5),
    ],
)
def test_normalisation_follows_the_checkpoint(
    values: dict[str, Any], mean: float, scale: float, checkpoint: Path, vit_config: TrainConfig
) -> None:
    _changed(checkpoint, "preprocessor_config.json", **values)
    config = dataclasses.replace(vit_config, architecture=None, checkpoint=str(checkpoint))
    model: Any = build(config, encoded_with(config)).model
    assert model.mean.flatten().tolist() == pytest.approx([mean] * 3)
    assert model.scale.flatten().tolist() == pytest.approx([scale] * 3)
