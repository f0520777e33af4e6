"""TrainConfig: strict validation, family defaults, batch size and learning rate over ranks, run ids, paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from disttrain.config.paths import absolute_paths
from disttrain.config.run_id import run_id
from disttrain.config.train_config import TrainConfig
from disttrain.config.validation import parse_value, validate
from disttrain.errors import UserError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "bert", "seed": True}, "seed is True, not an integer"),
        ({"model": "bert", "per_gpu_batch": 4.0}, "per_gpu_batch is 4.0, not an integer"),
        ({"model": "bert", "per_gpu_batch": "4"}, "per_gpu_batch is '4', not an integer (remove the quotes)"),
        ({"model": "bert", "lr": float("inf")}, "lr is inf, not a finite number"),
        ({"model": "gpt"}, "model 'gpt' is not known (write bert, vit or package.module:Family)"),
        ({"lr": 1e-3}, "model is missing"),
        ({"model": "bert", "per_gpu_bach": 1}, "unknown field 'per_gpu_bach' (did you mean per_gpu_batch?)"),
        ({"model": "bert", "checkpoint": "a/b", "architecture": {}}, "checkpoint 'a/b' and architecture are both set"),
        ({"model": "bert", "per_gpu_batch": 1, "global_batch": 4}, "per_gpu_batch 1 and global_batch 4 are both set"),
        (
            {"model": "bert", "precision": "tf32", "device": "cpu"},
            "precision tf32 needs a GPU, but device is cpu (write precision: fp32)",
        ),
        (
            {"model": "bert", "lr_scaling": "sqrt", "global_batch": 4},
            "lr_scaling sqrt increases lr with the number of ranks, but global_batch keeps the batch (set per_gpu",
        ),
    ],
)
def test_mistakes_name_the_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1e3", 1000.0),
        ("010", 10),
        ("4", 4),
        ("no", "no"),
        ("true", True),
        ("1:30", "1:30"),
        (".5", 0.5),
    ],
)
def test_yaml_scalars_have_types(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_resolved_fills_in_family_defaults() -> None:
    config = TrainConfig(model="vit").resolved()
    assert (config.checkpoint, config.dataset) == ("google/vit-base-patch16-224-in21k", "uoft-cs/cifar10")
    assert config.per_gpu_batch == 16
    assert TrainConfig(model="bert", architecture={"hidden_size": 8}).resolved().checkpoint is None
    assert TrainConfig(model="bert", architecture={}).resolved().checkpoint is None


def test_rank_batch_divides_global_batch() -> None:
    assert TrainConfig(model="bert", per_gpu_batch=4).rank_batch(4) == 4
    assert TrainConfig(model="bert", global_batch=16, grad_accum_steps=2).rank_batch(4) == 2
    with pytest.raises(UserError, match=r"global_batch 6 does not divide over 4 ranks x 1 .*multiple of 4"):
        TrainConfig(model="bert", global_batch=6).rank_batch(4)


def test_a_link_needs_two_ranks() -> None:
    with pytest.raises(UserError, match="model 'link' needs two or more ranks"):
        TrainConfig(model="link").check_world_size(1)
    small = TrainConfig(model="bert", compile=True, bucket_cap_mb=0.5)
    small.check_world_size(1)
    with pytest.raises(UserError, match=r"^bucket_cap_mb 0\.5 is less than 1, which torch cannot compile on several"):
        small.check_world_size(2)
    TrainConfig(model="bert", compile=True, bucket_cap_mb=1.0).check_world_size(2)
    TrainConfig(model="bert", bucket_cap_mb=0.5).check_world_size(2)
    TrainConfig(model="link").check_world_size(2)
    TrainConfig(model="bert").check_world_size(1)


def test_peak_lr_scales_with_ranks() -> None:
    assert [TrainConfig(model="bert", lr=1.0, lr_scaling=kind).peak_lr(4) for kind in ("none", "linear", "sqrt")] == [
        1,
        4,
        2,
    ]


def test_run_ids_are_frozen() -> None:
    """A changed id separates old results from their sweep: ids may change only with the computation."""
    assert {
        run_id("1x1", TrainConfig(model="bert")),
        run_id("2x2", TrainConfig(model="bert", lr=2e-4, per_gpu_batch=4)),
        run_id("1x4", TrainConfig(model="vit", architecture={"hidden_size": 32, "num_hidden_layers": 2})),
    } == GOLDEN


GOLDEN = {"1x1-7201b99ee663", "2x2-bfccd74b7a29", "1x4-401fa92bb6a6"}


def test_run_id_covers_only_result_fields() -> None:
    plain = run_id("1x1", TrainConfig(model="bert"))
    assert plain == run_id("1x1", TrainConfig(model="bert", num_workers=7, setup="1_1", output_dir="/tmp/x"))
    assert plain == run_id("1x1", TrainConfig(model="bert", dataset="stanfordnlp/imdb", per_gpu_batch=16))
    assert plain != run_id("1x2", TrainConfig(model="bert"))
    assert plain != run_id("1x1", TrainConfig(model="bert", seed=1))
    assert run_id("1x1", TrainConfig(model="bert", dataset="./data/x")) == run_id(
        "1x1", TrainConfig(model="bert", dataset="./data//y/../x")
    )


def test_relative_paths_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    config = TrainConfig(model="bert", dataset="./data", checkpoint="org/name")
    absolute = absolute_paths(config, str(tmp_path))
    assert (absolute.dataset, absolute.checkpoint) == (str(tmp_path / "data"), "org/name")
    with pytest.raises(UserError, match=r"dataset './nowhere' does not exist"):
        absolute_paths(TrainConfig(model="bert", dataset="./nowhere"), str(tmp_path))


@pytest.mark.parametrize(
    "value",
    [
        "data/films/train.csv", "train.csv", "TRAIN.TSV", "films.jsonl.gz", "films/train.csv", "runs/a/1x1/model",
        "data/train.csv", "data/train.parquet", "data/TRAIN.json.gz",
        "~nobody-of-this-name/x", "a b", "C:\\films", "https://huggingface.co/datasets/imdb", "hf://datasets/imdb",
        "file:///data", "org/name:subset", "org/name@main", "-x/y", "org/name/", "org//name", "a..b", "org/na--me",
        "org/repo.git", "x" * 97, "film\u00e9s", "a\0b", "~\0",
    ],
)  # fmt: skip
def test_neither_path_nor_hub_id_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    for name in ("dataset", "checkpoint"):
        with pytest.raises(UserError, match=f"{name} .* does not exist"):
            absolute_paths(validate({"model": "bert", name: value}), str(tmp_path))


@pytest.mark.parametrize("value", ["imdb", "stanfordnlp/imdb", "org/data_csv", "a/b-c_d.e", "5/6", "x" * 96])
def test_hub_id_needs_no_file(value: str, tmp_path: Path) -> None:
    assert absolute_paths(TrainConfig(model="bert", dataset=value), str(tmp_path)).dataset == value


def test_own_family_reads_its_checkpoint(tmp_path: Path) -> None:
    config = TrainConfig(model="a:B", dataset="imdb", checkpoint="timm:vit/small")
    assert absolute_paths(config, str(tmp_path)) == config


@pytest.mark.parametrize(
    ("value", "variable"),
    [
        ("$SCRATCH/films/train.csv", "$SCRATCH"),
        ("${SCRATCH}/films", "${SCRATCH}"),
        ("/data/$USER/films", "$USER"),
        ("~/$A/$B", "$A"),
        ("org/$NAME", "$NAME"),
        ("${SCRATCH:-/tmp}/films", "${SCRATCH:-/tmp}"),
        ("${SCRATCH%/}/films", "${SCRATCH%/}"),
        ("/data/$(whoami)/films", "$(whoami)"),
        ("/data/`whoami`/films", "`whoami`"),
    ],
)
def test_variable_in_a_path_is_named(value: str, variable: str, tmp_path: Path) -> None:
    for name in ("dataset", "checkpoint", "output_dir"):
        config = validate({"model": "bert", name: value})
        with pytest.raises(UserError) as caught:
            absolute_paths(config, str(tmp_path))
        assert caught.value.message == f"{name} {value!r} has the variable {variable}, which is not expanded"
    (tmp_path / "$HOME").mkdir()  # a name like any other
    assert absolute_paths(TrainConfig(model="bert", dataset="$HOME"), str(tmp_path)).dataset == f"{tmp_path}/$HOME"
