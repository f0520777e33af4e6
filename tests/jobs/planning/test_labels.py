"""What varies between the runs of a sweep: its columns, its labels and the names of its links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.config.train_config import FAMILY_DATASET
from jobs.planning.expand import expand
from jobs.planning.labels import Variation, link_name, value_text
from jobs.planning.plan import run_json
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml


def runs_of(text: str, overrides: dict[str, str] | None = None, folder: str = "/nowhere") -> list[dict[str, Any]]:
    sweep = parse_sweep(parse_yaml(f"name: s\n{text}", "s.yaml"), folder, overrides or {})
    return [run_json(run) for run in expand(sweep)]


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the scripts that commands name."""
    (tmp_path / "old").mkdir()
    for name in ("train.py", "old/train.py", "hf.py"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


def shown(runs: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[str]]:
    """The fields that vary, and every label."""
    variation = Variation(runs)
    return variation.fields, [variation.label(run) for run in runs]


def test_axes_and_seeds_are_in_the_label() -> None:
    text = "allocations: [1x1, 2x2]\nbase: {model: bert}\naxes: {lr: [2.0e-5]}\nseeds: [1, 2]\n"
    assert shown(runs_of(text)) == (("seed",), ["1x1 seed=1", "1x1 seed=2", "2x2 seed=1", "2x2 seed=2"])
    text = text.replace("[2.0e-5]", "[2.0e-5, 2.0e-4]").replace("[1x1, 2x2]", "[2x2]").replace("[1, 2]", "[1]")
    assert shown(runs_of(text)) == (("lr",), ["2x2 lr=2e-05", "2x2 lr=0.0002"])


def test_of_zipped_fields_the_fewest_are_in_the_label() -> None:
    text = """\
allocations: [1x1]
zip:
  model: [bert, vit]
  dataset: [org/a, org/b]
  architecture: [{vocab_size: 9}, {patch_size: 4}]
axes: {lr: [1.0, 2.0]}
"""
    fields = ("lr", "model", "dataset", "architecture")
    labels = ["1x1 lr=1.0 model=bert", "1x1 lr=1.0 model=vit", "1x1 lr=2.0 model=bert", "1x1 lr=2.0 model=vit"]
    assert shown(runs_of(text)) == (fields, labels)


def test_two_zipped_fields_are_needed() -> None:
    """No single field tells the three rows apart."""
    text = "allocations: [1x1]\nbase: {model: bert}\nzip: {lr: [1.0, 1.0, 2.0], epochs: [1, 2, 2], seed: [7, 7, 7]}\n"
    assert shown(runs_of(text)) == (
        ("lr", "epochs"),
        [f"1x1 lr={lr} epochs={n}" for lr, n in ((1.0, 1), (1.0, 2), (2.0, 2))],
    )


def test_a_mapping_is_its_number() -> None:
    text = "allocations: [1x1]\nbase: {model: bert}\naxes: {architecture: [{vocab_size: 9}, {vocab_size: 8}]}\n"
    runs = runs_of(text)
    assert shown(runs) == (("architecture",), ["1x1 architecture=#1", "1x1 architecture=#2"])
    variation = Variation(runs)
    assert variation.values(runs[1]) == {"architecture": {"vocab_size": 8}}
    assert variation.texts(runs[1]) == {"architecture": "#2"}


def test_fields_of_include_vary() -> None:
    text = "allocations: [1x1]\nbase: {model: bert}\ninclude: [{weight_decay: 0.0}]\n"
    assert shown(runs_of(text)) == (("weight_decay",), ["1x1 weight_decay=0.01", "1x1 weight_decay=0.0"])


def test_overrides_of_two_submissions_vary() -> None:
    text = "allocations: [1x1]\nbase: {model: bert, precision: fp32}\n"
    runs = [*runs_of(text), *runs_of(text, {"precision": "bf16", "num_workers": "0"})]
    assert shown(runs) == (("precision", "num_workers"), ["1x1 precision=fp32", "1x1 precision=bf16"])


def test_what_follows_from_a_field_does_not_vary() -> None:
    """The model decides the default dataset and checkpoint."""
    text = "allocations: [1x1]\naxes: {model: [bert, vit]}\n"
    assert shown(runs_of(text)) == (("model",), ["1x1 model=bert", "1x1 model=vit"])


def test_a_default_that_is_written_out_does_not_vary() -> None:
    text = f"allocations: [1x1]\nbase: {{model: bert}}\ninclude: [{{dataset: {FAMILY_DATASET['bert']}, lr: 1.0}}]\n"
    assert shown(runs_of(text)) == (("lr",), ["1x1 lr=2e-05", "1x1 lr=1.0"])


def test_paths_are_as_in_the_sweep_file(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    text = "allocations: [1x1]\nbase: {model: bert}\naxes: {dataset: [./a, ./b]}\n"
    runs = runs_of(text, folder=str(tmp_path))
    assert shown(runs)[1] == ["1x1 dataset=./a", "1x1 dataset=./b"]
    assert [run["train"]["dataset"] for run in runs] == [f"{tmp_path}/a", f"{tmp_path}/b"]


def test_a_link_run_has_only_its_own_fields() -> None:
    text = "allocations: [2x1]\nbase: {model: bert}\naxes: {lr: [1.0, 2.0]}\nmeasure_link: true\n"
    runs = runs_of(text)
    assert shown(runs) == (("lr", "model"), ["2x1 lr=1.0", "2x1 lr=2.0", "2x1 model=link"])
    assert Variation(runs).values(runs[2]) == {"lr": None, "model": "link"}


def test_a_plan_of_the_former_release_has_labels() -> None:
    runs = runs_of("allocations: [1x1]\nbase: {model: bert}\naxes: {lr: [1.0, 2.0]}\n")
    for run in runs:
        del run["asked"]
    assert shown(runs) == (("lr",), ["1x1 lr=1.0", "1x1 lr=2.0"])


def test_one_run_has_its_allocation_as_label() -> None:
    assert shown(runs_of("allocations: [2x2]\nbase: {model: bert}\n")) == ((), ["2x2"])


VALUES: dict[str, list[Any]] = {
    "lr": [1e-5, 2e-5, 1.0],
    "epochs": [1, 2],
    "compile": [True, False],
    "weight_decay": [0.0, 0.01],
}


@settings(deadline=None)
@given(
    st.lists(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()}), min_size=1),
    st.lists(st.sampled_from(["1x1", "2x1"]), min_size=1, max_size=2, unique=True),
)
def test_labels_tell_runs_apart(points: list[dict[str, Any]], allocations: list[str]) -> None:
    unique = list({tuple(sorted(point.items())): point for point in points}.values())
    runs = [
        {"run_id": "", "allocation": allocation, "point": point, "asked": point, "train": {"model": "bert", **point}}
        for allocation in allocations
        for point in unique
    ]
    _, labels = shown(runs)
    assert len(set(labels)) == len(runs)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (1, "1"), (1.0, "1.0"), (2e-5, "2e-05"), ("no", "no"), ("./a b", "./a b")],
)
def test_text_of_a_value(value: object, text: str) -> None:
    assert value_text(value) == text


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("2x2 lr=2e-05 seed=1", "2x2_lr=2e-05_seed=1"),
        ("1x1 dataset=./data/sst2 per_gpu_batch=4", "1x1_dataset=.-data-sst2_per_gpu_batch=4"),
        ("1x1 architecture=#1", "1x1_architecture=-1"),
        ("1x1 model=my.package:Family", "1x1_model=my.package-Family"),
        ("1x1 text_column=Größe", "1x1_text_column=Gr--e"),
    ],
)
def test_name_of_a_link(label: str, name: str) -> None:
    assert link_name(label) == name


def test_paths_of_base_and_include_are_as_written(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    text = "allocations: [1x1]\nbase: {model: bert, dataset: ./a}\ninclude: [{dataset: ./b}]\n"
    assert shown(runs_of(text, folder=str(tmp_path)))[1] == ["1x1 dataset=./a", "1x1 dataset=./b"]


def test_link_runs_that_differ_are_told_apart() -> None:
    text = "allocations: [2x1]\nbase: {model: bert}\nmeasure_link: true\n"
    runs = [*runs_of(text), *runs_of(text, {"device": "cpu"})]
    labels = ["2x1 device=auto", "2x1 model=link device=auto", "2x1 device=cpu", "2x1 model=link device=cpu"]
    assert shown([runs[0], runs[1], runs[2], runs[3]]) == (("model", "device"), labels)


def test_a_link_run_has_no_text_for_other_fields() -> None:
    text = "allocations: [2x1]\nbase: {model: bert}\naxes: {lr: [1.0, 2.0]}\nmeasure_link: true\n"
    runs = runs_of(text)
    assert Variation(runs).texts(runs[2]) == {"lr": "", "model": "link"}


def test_a_line_break_stays_in_its_line() -> None:
    assert value_text("a\nb") == '"a\\nb"'


@pytest.mark.usefixtures("scripts")
def test_keys_of_a_command_are_in_the_label() -> None:
    """Names of our fields have no meaning in them: no default, and no path."""
    text = """\
allocations: [1x1]
command: python train.py
base: {epochs: 1}
axes: {model: [a b, 漢字], dataset: [./x], amp: [true, 1, "2", null, [1, "a"], {x: 1}]}
"""
    runs = runs_of(text)
    fields, labels = shown(runs)
    assert fields == ("model", "amp")
    assert [label for label in labels if "漢字" in label] == [
        "1x1 model=漢字 amp=true",
        "1x1 model=漢字 amp=1",
        "1x1 model=漢字 amp=2",
        "1x1 model=漢字 amp=null",
        '1x1 model=漢字 amp=[1, "a"]',
        "1x1 model=漢字 amp=#1",
    ]


@pytest.mark.usefixtures("scripts")
def test_a_key_that_some_runs_lack_tells_them_apart() -> None:
    """A command has no defaults: epochs 1 of another run is no value of this one."""
    text = "allocations: [1x1]\ncommand: python train.py\nbase: {lr: 1}\ninclude: [{epochs: 1}]\nmeasure_link: true\n"
    runs = runs_of(text.replace("[1x1]", "[2x1]"))
    assert shown(runs) == (("epochs", "model"), ["2x1", "2x1 epochs=1", "2x1 model=link"])
    variation = Variation(runs)
    assert [variation.values(run) for run in runs] == [
        {"model": None, "epochs": None},
        {"model": None, "epochs": 1},
        {"model": "link", "epochs": None},
    ]
    assert [variation.texts(run)["epochs"] for run in runs] == ["", "1", ""]


@pytest.mark.usefixtures("scripts")
def test_a_command_has_the_name_of_its_script_in_a_label() -> None:
    text = "allocations: [1x1]\nzip: {command: [python train.py, python old/train.py, ./run.sh --x, env A=1 b]}\n"
    assert shown(runs_of(text)) == (
        ("command",),
        ["1x1 command=train.py#1", "1x1 command=train.py#2", "1x1 command=run.sh", "1x1 command=b"],
    )


@pytest.mark.usefixtures("scripts")
def test_the_label_of_a_command_next_to_our_models() -> None:
    text = """\
allocations: [1x1]
zip: {model: [bert, null], command: [null, python hf.py]}
axes: {lr: [1, 2]}
include: [{model: vit, lr: 1}]
"""
    assert shown(runs_of(text)) == (
        ("lr", "model", "command"),
        [
            "1x1 lr=1.0 model=bert",
            "1x1 command=hf.py lr=1.0",
            "1x1 lr=2.0 model=bert",
            "1x1 command=hf.py lr=2.0",
            "1x1 lr=1.0 model=vit",
        ],
    )
