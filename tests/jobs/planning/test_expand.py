"""The runs of a sweep: order, ids, exclude and include, and the grids of the original study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.config.run_id import run_id
from disttrain.config.train_config import FAMILY_CHECKPOINT, FAMILY_DATASET, TrainConfig
from jobs.planning.expand import RunSpec, expand
from jobs.planning.sweep_file import load_sweep, parse_sweep
from jobs.planning.yaml_file import parse_yaml
from tests.jobs.sweeping import train_config

ROOT = Path(__file__).parents[3]
SWEEPS = Path(__file__).parents[1] / "data" / "sweeps"


def runs_of(text: str, folder: str = "/nowhere") -> tuple[RunSpec, ...]:
    return expand(parse_sweep(parse_yaml(text, "s.yaml"), folder))


def lines_of(runs: tuple[RunSpec, ...]) -> list[str]:
    return [" ".join([str(run.allocation), *(f"{name}={value}" for name, value in run.point.items())]) for run in runs]


def test_the_order_of_runs() -> None:
    """Allocations vary slowest, then axes, zip and seeds; the runs of include come last."""
    runs = expand(load_sweep(SWEEPS / "everything.yaml"))
    assert [run.index for run in runs] == list(range(len(runs)))
    assert lines_of(runs) == EVERYTHING.splitlines()
    assert [(train_config(run).seed, train_config(run).max_steps, train_config(run).lr) for run in runs[-4:]] == [
        (0, 3, 2e-5),
        (1, 3, 2e-5),
        (7, 5, 2e-5),
        (7, 5, 2e-5),
    ]


EVERYTHING = """\
1x1 model=bert lr=0.0002 per_gpu_batch=1 grad_accum_steps=4 seed=0
1x1 model=bert lr=0.0002 per_gpu_batch=1 grad_accum_steps=4 seed=1
1x1 model=bert lr=0.0002 per_gpu_batch=4 grad_accum_steps=1 seed=0
1x1 model=bert lr=0.0002 per_gpu_batch=4 grad_accum_steps=1 seed=1
1x1 model=bert lr=2e-05 per_gpu_batch=1 grad_accum_steps=4 seed=0
1x1 model=bert lr=2e-05 per_gpu_batch=4 grad_accum_steps=1 seed=0
1x1 model=vit lr=2e-05 per_gpu_batch=1 grad_accum_steps=4 seed=0
1x1 model=vit lr=2e-05 per_gpu_batch=1 grad_accum_steps=4 seed=1
1x1 model=vit lr=2e-05 per_gpu_batch=4 grad_accum_steps=1 seed=0
1x1 model=vit lr=2e-05 per_gpu_batch=4 grad_accum_steps=1 seed=1
2x2 model=bert lr=0.0002 per_gpu_batch=1 grad_accum_steps=4 seed=0
2x2 model=bert lr=0.0002 per_gpu_batch=1 grad_accum_steps=4 seed=1
2x2 model=bert lr=2e-05 per_gpu_batch=1 grad_accum_steps=4 seed=0
2x2 model=vit lr=2e-05 per_gpu_batch=1 grad_accum_steps=4 seed=0
2x2 model=vit lr=2e-05 per_gpu_batch=1 grad_accum_steps=4 seed=1
1x8 model=vit precision=bf16 seed=0
1x8 model=vit precision=bf16 seed=1
2x1 max_steps=5 max_eval_examples=0 checkpoint=None model=bert seed=7
1x1 max_steps=5 max_eval_examples=0 checkpoint=None model=bert seed=7
"""


def test_ids_are_frozen() -> None:
    """If an id changes, finished runs are no longer found. Only a change of the results may change an id."""
    assert [run.run_id for run in runs_of(FROZEN)] == FROZEN_IDS.split()


FROZEN = """\
name: frozen
allocations: [1x1, 2x2]
axes:
  model: [bert, vit]
include:
  - {model: bert, lr: 2e-4, epochs: 5, allocation: 1x4}
  - {model: bert, per_gpu_batch: 4, max_steps: 220, timing_warmup_steps: 20, max_eval_examples: 0, allocation: 1x4}
  - {model: bert, architecture: {hidden_size: 32, layers: [1, 2.0, true, null]}, dataset: some/text, allocation: 2x1}
  - {model: vit, per_gpu_batch: 256, precision: bf16, seed: 3, image_size: 32, lr_scaling: sqrt, allocation: 16x8}
"""
FROZEN_IDS = """\
1x1-7201b99ee663
1x1-a2b31a99ca1b
2x2-cface6645019
2x2-b1bf59af0b14
1x4-b525e791b57a
1x4-419978c6e12f
2x1-df5660443970
16x8-e6ef282459ec
"""


def test_ids_ignore_fields_without_effect() -> None:
    plain = "name: s\nallocations: [1x1]\nbase: {model: bert}\n"
    explicit = """\
name: other
allocations: [1_1]
base: {model: bert, checkpoint: google-bert/bert-base-uncased, dataset: stanfordnlp/imdb, lr: 0.00002, seed: 0,
       per_gpu_batch: 16, num_workers: 7, setup: 1x1, weight_decay: 1e-2}
"""
    assert runs_of(plain)[0].run_id == runs_of(explicit)[0].run_id


def test_an_equal_setup_is_dropped() -> None:
    (run,) = runs_of("name: s\nallocations: [2x2]\nbase: {model: bert, setup: 2_2}\n")
    assert train_config(run).setup is None


def test_ids_do_not_depend_on_the_folder(tmp_path: Path) -> None:
    text = "name: s\nallocations: [1x1]\nbase: {model: bert}\naxes: {dataset: [data/sst2, ./other, org/name]}\n"
    for folder in ("a", "b"):
        (tmp_path / folder / "data" / "sst2").mkdir(parents=True)
        (tmp_path / folder / "other").mkdir()
    first, second = (runs_of(text, str(tmp_path / folder)) for folder in ("a", "b"))
    assert [train_config(run).dataset for run in first] == [
        str(tmp_path / "a/data/sst2"),
        str(tmp_path / "a/other"),
        "org/name",
    ]
    assert [run.run_id for run in first] == [run.run_id for run in second]
    dotted = runs_of(text.replace("data/sst2", "./data/../data/sst2/"), str(tmp_path / "a"))
    assert [run.run_id for run in first] == [run.run_id for run in dotted]


def test_two_paths_of_one_folder_are_one_run(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    text = f"name: s\nallocations: [1x1]\nbase: {{model: bert}}\naxes: {{dataset: [./data, {tmp_path}/data]}}\n"
    with pytest.raises(Exception, match=r"^s\.yaml:4: axes\.dataset\[1\]: 1x1 dataset=\S+/data is the same run as 1x1"):
        runs_of(text, str(tmp_path))


def test_exclude_compares_types() -> None:
    """It also removes points before their fields are checked together."""
    runs = runs_of("""\
name: s
allocations: [1x1]
base: {model: bert}
axes:
  architecture: [null, {a: 1}, {a: true}, {a: 1.0}]
  checkpoint: [null, x/y]
exclude:
  - {architecture: {a: 1}}
  - {architecture: {a: true}, checkpoint: x/y}
  - {architecture: {a: 1.0}, checkpoint: x/y}
""")
    assert [(train_config(run).architecture, train_config(run).checkpoint) for run in runs] == [
        (None, "google-bert/bert-base-uncased"),
        (None, "x/y"),
        ({"a": True}, None),
        ({"a": 1.0}, None),
    ]


LINKED = """\
name: s
allocations: [1x1, 2x1]
base: {model: bert, device: cpu, lr: 1e-3, dataset: some/text}
include:
  - {allocation: 2x2, model: vit}
  - {allocation: 2x1, lr: 1e-4}
exclude: []
seeds: [0, 1]
"""


def test_one_link_run_per_allocation() -> None:
    plain, linked = runs_of(LINKED), runs_of(LINKED + "measure_link: true\n")
    assert linked[: len(plain)] == plain
    added = linked[len(plain) :]
    assert lines_of(added) == ["2x1 model=link", "2x2 model=link"]
    assert [run.index for run in linked] == list(range(len(linked)))
    for run in added:
        assert run.config == TrainConfig(model="link", device="cpu")
    assert [run.run_id for run in added] == [run_id(str(run.allocation), run.config) for run in added]
    assert runs_of(LINKED + "measure_link: false\n") == plain


def test_ranks_of_one_node_have_a_link() -> None:
    runs = runs_of("name: s\nallocations: [1x1, 1x4]\nbase: {model: bert}\nmeasure_link: true\n")
    assert lines_of(runs) == ["1x1", "1x4", "1x4 model=link"]


def test_exclude_keeps_the_runs_of_include() -> None:
    """So one point of an excluded row can still run."""
    text = "name: s\nallocations: [1x1]\nbase: {model: bert}\naxes: {lr: [1, 2]}\nexclude: [{lr: 2}]\n"
    runs = runs_of(text + "include: [{lr: 2, epochs: 5}]\n")
    assert lines_of(runs) == ["1x1 lr=1.0", "1x1 lr=2.0 epochs=5"]


@st.composite
def grids(draw: st.DrawFn) -> tuple[str, int]:
    """The text of a sweep with axes, zip and seeds, and the number of its runs."""
    allocations = draw(
        st.lists(st.sampled_from(["1x1", "1x4", "2x2", "2x1", "3x5"]), min_size=1, max_size=3, unique=True)
    )
    sections: dict[str, list[str]] = {"axes": [], "zip": []}
    count = len(allocations)
    for name in draw(st.lists(st.sampled_from(["lr", "epochs", "per_gpu_batch"]), max_size=3, unique=True)):
        values = draw(st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True))
        sections["axes"].append(f"  {name}: {values}")
        count *= len(values)
    rows = draw(st.integers(0, 3))
    if rows:
        sections["zip"] += [f"  max_steps: {list(range(1, rows + 1))}", f"  max_length: {[64] * rows}"]
        count *= rows
    text = f"name: s\nallocations: [{', '.join(allocations)}]\nbase: {{model: vit}}\n"
    text += "".join(f"{name}:\n" + "\n".join(lines) + "\n" for name, lines in sections.items() if lines)
    seeds = draw(st.lists(st.integers(0, 2**32 - 1), max_size=3, unique=True))
    return (text + f"seeds: {seeds}\n", count * len(seeds)) if seeds else (text, count)


@given(grids())
def test_a_grid_is_the_product_of_its_lists(grid: tuple[str, int]) -> None:
    text, count = grid
    runs = runs_of(text)
    assert len(runs) == count
    assert len({run.run_id for run in runs}) == count
    assert runs == runs_of(text)
    assert all(getattr(run.config, name) == value for run in runs for name, value in run.point.items())


@pytest.mark.parametrize("model", ["bert", "vit"])
@pytest.mark.parametrize(
    ("experiment", "grid", "fixed"),
    [
        (
            "batch_size",
            [(allocation, {"per_gpu_batch": batch}) for allocation in ("1x1", "1x4", "2x2") for batch in (1, 4, 16)],
            {"timing_warmup_steps": 20, "max_steps": 220, "max_eval_examples": 0},
        ),
        (
            "learning_rate",
            [(allocation, {"lr": lr}) for allocation in ("1x1", "1x4", "2x2") for lr in (2e-4, 2e-5)],
            {"per_gpu_batch": 16, "epochs": 5, "max_steps": None, "max_eval_examples": None},
        ),
        (
            "propagation",
            [("2x1", {}), ("2x1", {"model": "link"})],
            {
                "detailed_timing": True,
                "per_gpu_batch": 16,
                "timing_warmup_steps": 20,
                "max_steps": 220,
                "max_eval_examples": 0,
            },
        ),
    ],
)
def test_the_grids_of_the_study(
    model: str, experiment: str, grid: list[tuple[str, dict[str, float]]], fixed: dict[str, object]
) -> None:
    sweep = load_sweep(ROOT / "sweeps" / f"{model}_{experiment}.yaml")
    runs = expand(sweep)
    assert sweep.name == f"{model}-{experiment}".replace("_", "-")
    assert set(sweep.slurm.for_all) == {"time"}
    assert [(str(run.allocation), run.point) for run in runs] == grid
    fixed |= {"model": model, "checkpoint": FAMILY_CHECKPOINT[model], "dataset": FAMILY_DATASET[model]}
    for run in runs:
        if train_config(run).model != "link":
            assert {name: getattr(run.config, name) for name in fixed} == fixed


@pytest.mark.parametrize(
    ("model", "changed"), [("bert", {"compact_vocab", "trim_last_layer"}), ("vit", {"trim_last_layer"})]
)
@pytest.mark.parametrize("experiment", ["batch_size", "learning_rate", "propagation"])
def test_the_study_trains_published_models(model: str, changed: set[str], experiment: str) -> None:
    """`changed` are the fields that change this model for speed by default."""
    runs = expand(load_sweep(ROOT / "sweeps" / f"{model}_{experiment}.yaml"))
    training = [run for run in runs if train_config(run).model != "link"]
    assert training
    for run in training:
        assert {name: getattr(run.config, name) for name in changed} == dict.fromkeys(changed, False)


@pytest.mark.process
def test_loads_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "datasets", "pandas", "submitit"}
    code = f"import sys, jobs.planning.expand; print(sorted({heavy} & set(sys.modules)))"
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert completed.stdout == "[]\n"
