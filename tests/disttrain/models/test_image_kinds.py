"""Image models of many kinds train on two ranks, take the run's image size or are refused, and are saved and reopened.

The checkpoints have random weights. docs/models.md names the kinds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.models.deit.modeling_deit import DeiTForImageClassificationWithTeacher

from disttrain.config.train_config import TrainConfig
from disttrain.data.splits import load_splits
from disttrain.errors import UserError
from disttrain.models import normalisation
from disttrain.models.normalisation import checkpoint_normalisation
from disttrain.models.vit import ImageClassifier, build, encode
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import EvalRecord, StartRecord
from tests.disttrain.ranks import ALONE

SIZE = 32
_LAYERS: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": SIZE,
    "patch_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2,
}  # fmt: skip
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic"}


@dataclass(frozen=True)
class Kind:
    """The sizes of a kind's small model, and what is known of it."""

    fields: dict[str, Any]
    changes: tuple[str, ...] = ()  # the fields of the run that change it for speed
    same_on_ranks: bool = True  # whether two ranks have the losses of one


KINDS = {
    "vit": Kind(_LAYERS, ("trim_last_layer",)),
    "deit": Kind(_LAYERS, ("trim_last_layer",)),
    "beit": Kind({**_LAYERS, "drop_path_rate": 0.0}),
    "dinov2": Kind({**_LAYERS, "mlp_ratio": 2}),
    "dinov2_with_registers": Kind({**_LAYERS, "mlp_ratio": 2}),
    "swin": Kind({
        "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": SIZE, "patch_size": 4,
        "drop_path_rate": 0.0,
    }),
    "swinv2": Kind({
        "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": SIZE, "patch_size": 4,
        "drop_path_rate": 0.0,
    }),
    "convnext": Kind({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": SIZE}),
    "convnextv2": Kind({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": SIZE}),
    # Each rank normalises its batch by the statistics of this batch, as everywhere with batch normalisation and DDP.
    "resnet": Kind(_STAGES, same_on_ranks=False),
    "regnet": Kind({**_STAGES, "layer_type": "y", "groups_width": 8}, same_on_ranks=False),
}  # fmt: skip


def make_checkpoint(kind: str, folder: Path, **fields: Any) -> str:
    """A checkpoint of this kind with random weights, and the image processor of its class."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**KINDS[kind].fields, **fields}, num_labels=2, architectures=[])
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    write_processor(folder, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    return str(folder)


def write_processor(folder: Path, **fields: Any) -> None:
    processor = {"image_processor_type": "ViTImageProcessor", **fields}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def loss_of_saved(folder: Path, data: Path) -> float:
    """The mean loss of a saved model, opened by transformers alone, one image at a time."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    losses = []
    for path in sorted(data.glob("*/*.png")):
        pixels = processor(Image.open(path).convert("RGB"), return_tensors="pt").pixel_values
        label = torch.tensor([model.config.label2id[path.parent.name]])
        with torch.no_grad():
            losses.append(float(torch.nn.functional.cross_entropy(model(pixels).logits, label)))
    return sum(losses) / len(losses)


def config_with(vit_config: TrainConfig, checkpoint: str, **fields: Any) -> TrainConfig:
    defaults = {"architecture": None, "image_size": SIZE, "max_steps": 4, "lr": 1e-3}
    return dataclasses.replace(vit_config, checkpoint=checkpoint, **{**defaults, **fields})


@pytest.mark.process
@pytest.mark.parametrize("size", [SIZE, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_trains_and_is_reopened(
    kind: str, size: int, vit_config: TrainConfig, images: Path, tmp_path: Path, run_ranks: Callable[..., Any]
) -> None:
    config = config_with(vit_config, make_checkpoint(kind, tmp_path / "checkpoint"), image_size=size)
    finished = run_ranks(config, 2)
    assert finished.exit_codes == (0, 0)
    records = list(read_records(finished.output_dir / metrics_name(0)))
    (evaluated,) = (record for record in records if isinstance(record, EvalRecord) and record.step == 4)
    # The image processor resizes and rounds in another order of operations.
    assert evaluated.loss == pytest.approx(loss_of_saved(finished.output_dir / "model", images / "test"), rel=1e-2)
    (start,) = (record for record in records if isinstance(record, StartRecord))
    assert start.model_changes == KINDS[kind].changes
    alone = run_ranks(dataclasses.replace(config, per_gpu_batch=8), 1)
    assert alone.exit_codes == (0,)
    if KINDS[kind].same_on_ranks:
        assert alone.losses() == pytest.approx(finished.losses(), rel=1e-3)


class Echo(torch.nn.Module):
    """Returns the pixels that it gets."""

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return type("Output", (), {"logits": pixel_values})


def built_from(vit_config: TrainConfig, checkpoint: str, **fields: Any) -> Any:
    config = config_with(vit_config, checkpoint, **fields)
    return build(config, encode(config, load_splits(config.resolved(), "image"), ALONE, Path()))


def test_positions_are_interpolated_as_the_model_does_it(vit_config: TrainConfig, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("deit", tmp_path)
    model = built_from(vit_config, checkpoint, image_size=64, trim_last_layer=False).model.model.eval()
    original = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    pixels = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(pixels).logits, original(pixels, interpolate_pos_encoding=True).logits)
    assert model.config.image_size == 64


@pytest.mark.parametrize(
    ("kind", "fields", "size", "message"),
    [
        ("bert", {}, SIZE, "is a bert model, which does not classify images"),
        ("imagegpt", {"n_embd": 32, "n_layer": 1, "n_head": 2}, SIZE, "cannot classify images of 32 x 32 pixels: .*"),
        (
            "perceiver",
            {"d_latents": 16, "d_model": 322, "num_latents": 4, "num_blocks": 1},
            SIZE,
            "cannot classify images",
        ),
        ("deit", _LAYERS, 36, "image_size 36 is not a multiple of the patch size 8"),
        ("siglip", {}, 48, r"cannot classify images of 48 x 48 pixels: .* \(it was trained with image_size: 32\)"),
        ("dinov2", {**_LAYERS, "mlp_ratio": 2}, 36, "image_size 36 is not a multiple of the patch size 8"),
        ("beit", _LAYERS, 36, "image_size 36 is not a multiple of the patch size 8"),
        ("vit", {**_LAYERS, "num_channels": 1}, SIZE, "takes images of 1 channels"),
    ],
)
def test_models_that_do_not_take_the_images_are_refused(
    kind: str, fields: dict[str, Any], size: int, message: str, vit_config: TrainConfig, tmp_path: Path
) -> None:
    config = AutoConfig.for_model(kind, **fields, num_labels=2, architectures=[])
    if kind == "siglip":
        config.vision_config = type(config.vision_config)(**_LAYERS)
    if kind == "bert":
        config.save_pretrained(tmp_path)
    else:
        AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        built_from(vit_config, str(tmp_path), image_size=size)


@pytest.mark.parametrize(
    ("kind", "processor"),
    [("efficientnet", "EfficientNetImageProcessor"), ("convnext", "ConvNextImageProcessor")],
)
def test_pixels_are_normalised_as_by_the_class_of_the_processor(
    kind: str, processor: str, tmp_path: Path, vit_config: TrainConfig
) -> None:
    """The processor of EfficientNet divides by the deviation twice."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    write_processor(tmp_path, image_processor_type=processor, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    found = checkpoint_normalisation(str(tmp_path))
    assert found is not None
    pixels = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(
        pixels, do_resize=False, do_center_crop=False, return_tensors="pt"
    ).pixel_values
    ours = ImageClassifier(Echo(), found)({"pixels": pixels[None]})
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_processor_that_exchanges_channels_is_refused(tmp_path: Path, vit_config: TrainConfig) -> None:
    checkpoint = make_checkpoint("vit", tmp_path)
    write_processor(tmp_path, image_processor_type="MobileViTImageProcessor")
    with pytest.raises(UserError, match="cannot be used: it mixes the channels or exchanges them"):
        built_from(vit_config, checkpoint)


def test_all_heads_are_reordered(vit_config: TrainConfig, tmp_path: Path) -> None:
    """A DeiT with a teacher has two heads, and returns the mean of their scores."""
    torch.manual_seed(0)
    names = {"id2label": {0: "dog", 1: "cat"}, "label2id": {"dog": 0, "cat": 1}}
    original = DeiTForImageClassificationWithTeacher(AutoConfig.for_model("deit", **_LAYERS, **names)).eval()
    original.save_pretrained(tmp_path)
    write_processor(tmp_path)
    built = built_from(vit_config, str(tmp_path))
    assert any("reordered" in notice for notice in built.notices)
    pixels = torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(built.model.model.eval()(pixels).logits, original(pixels).logits.flip(1))
    assert built.model_changes == ()


def test_batch_normalisation_of_one_value_is_refused(vit_config: TrainConfig, tmp_path: Path) -> None:
    """The last batch of an epoch may have one image, of which this model keeps one pixel."""
    checkpoint = make_checkpoint("resnet", tmp_path)
    before = AutoModelForImageClassification.from_pretrained(checkpoint).state_dict()
    after = built_from(vit_config, checkpoint).model.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with pytest.raises(UserError, match="cannot train on one image of 8 x 8 pixels: Expected more than 1 value"):
        built_from(vit_config, checkpoint, image_size=8)


def test_a_model_of_a_package_that_is_not_installed_is_refused(vit_config: TrainConfig, tmp_path: Path) -> None:
    config = {"model_type": "timm_wrapper", "architecture": "resnet18"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"its model needs a package that is not installed.*[Tt]imm"):
        built_from(vit_config, str(tmp_path))


def test_a_size_of_two_numbers_is_kept_for_models_that_need_it(vit_config: TrainConfig, tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "hiera", embed_dim=8, image_size=[64, 64], depths=[1, 1], num_heads=[1, 2], query_stride=[2, 2],
        num_query_pool=1, masked_unit_size=[8, 8], masked_unit_attention=[True, True], num_labels=2, architectures=[],
    )  # fmt: skip
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    assert built_from(vit_config, str(tmp_path), image_size=64).model.model.config.image_size == [64, 64]


def test_a_hub_that_does_not_answer_may_have_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the run would train on other pixels."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub")

    def raising(error: type[Exception]) -> Any:
        def download(*_: object, **__: object) -> None:
            raise error("it is not there")

        return download

    monkeypatch.setattr("transformers.AutoImageProcessor.from_pretrained", refuse)
    monkeypatch.setattr(normalisation, "hf_hub_download", raising(LocalEntryNotFoundError))
    with pytest.raises(UserError, match="the image processor of checkpoint 'a/b' cannot be used: We couldn't connect"):
        checkpoint_normalisation("a/b")
    monkeypatch.setattr(normalisation, "hf_hub_download", raising(EntryNotFoundError))
    assert checkpoint_normalisation("a/b") is None


def test_a_damaged_processor_is_refused(vit_config: TrainConfig, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match=r"the image processor of checkpoint .* cannot be used"):
        built_from(vit_config, checkpoint)
