"""The JSON Schemas: every sweep and profile of the repository fits, and mistakes do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from disttrain.config.train_config import field_names
from jobs.planning.cluster_profile import SECTIONS, ClusterProfile
from jobs.planning.schema.yaml_schemas import profile_schema, sweep_schema
from jobs.planning.yaml_file import load_yaml, parse_yaml

REPOSITORY = Path(__file__).resolve().parents[4]
SWEEPS = [
    *(REPOSITORY / "sweeps").rglob("*.yaml"),
    *(REPOSITORY / "tests" / "proofs").glob("*.yaml"),
    REPOSITORY / "tests" / "jobs" / "data" / "sweeps" / "everything.yaml",
]
PROFILES = [
    *(REPOSITORY / "slurm_templates").rglob("*.yaml"),
    REPOSITORY / "tests" / "slurm_cluster" / "two_nodes.yaml",
]
SWEEP = "name: s\nallocations: [1x1, 2x2]\n"
COMMAND = f"{SWEEP}command: python train.py\n"


def mistakes(schema: dict[str, Any], values: Any) -> list[str]:
    """The messages about values that do not fit a schema."""
    jsonschema.Draft202012Validator.check_schema(schema)
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(values)]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_sweep_fits(path: Path) -> None:
    assert mistakes(sweep_schema(), load_yaml(path).value) == []


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_every_profile_fits(path: Path) -> None:
    assert mistakes(profile_schema(), load_yaml(path).value) == []


@pytest.mark.parametrize(
    "text",
    [
        f"{SWEEP}base: {{model: bert}}\nslurm: {{time: 00:10:00, 2x2: {{partition: long}}}}\n",
        f"{SWEEP}base: {{model: bert}}\nexclude: [{{allocation: 2x2, lr: 1}}]\n",
        f"{COMMAND}base: {{anything: [1, two]}}\naxes: {{model_size: [s, m]}}\n",
        f"{SWEEP}base: {{anything: 1}}\nzip: {{command: [python a.py, python b.py]}}\n",
    ],
)
def test_further_sweeps_fit(text: str) -> None:
    assert mistakes(sweep_schema(), parse_yaml(text, "s.yaml").value) == []


@pytest.mark.parametrize(
    "text",
    [
        "name: s\nbase: {model: bert}\n",
        f"{SWEEP}bases: {{model: bert}}\n",
        f"{SWEEP}base: {{model: bert, epoch: 1}}\n",
        f"{SWEEP}base: {{model: bert, lr: fast}}\n",
        f"{SWEEP}base: {{model: bert, output_dir: here}}\n",
        f"{SWEEP}base: {{model: bert, per_gpu_batch: 0}}\n",
        f"{SWEEP}base: {{model: bert}}\naxes: {{lr: 1}}\n",
        f"{SWEEP}base: {{model: bert}}\naxes: {{lr: []}}\n",
        f"{SWEEP}base: {{model: bert}}\nslurm: {{queue: gpu}}\n",
        f"{SWEEP}base: {{model: bert}}\nslurm: {{2x2: {{queue: gpu}}}}\n",
        f"{SWEEP}base: {{model: bert}}\nseeds: [-1]\n",
        f"{SWEEP}base: {{model: bert}}\nexclude: [{{epoch: 1}}]\n",
        "name: s\nallocations: [2by2]\nbase: {model: bert}\n",
        f"{COMMAND}axes: {{lr: 1}}\n",
    ],
)
def test_mistakes_do_not_fit(text: str) -> None:
    assert mistakes(sweep_schema(), parse_yaml(text, "s.yaml").value)


@pytest.mark.parametrize("text", ["partitions: gpu", "cpus_per_gpu: 0", "gpu_request: all", "setup: module load cuda"])
def test_wrong_profiles_do_not_fit(text: str) -> None:
    assert mistakes(profile_schema(), parse_yaml(text, "p.yaml").value)


def test_every_key_says_what_it_means() -> None:
    sweep, profile = sweep_schema(), profile_schema()
    assert list(sweep["properties"]) == list(SECTIONS)
    assert list(profile["properties"]) == list(ClusterProfile.model_fields)
    fields = sweep["$defs"]["fields"]["properties"]
    assert set(field_names()) - set(fields) == {"output_dir"}
    for properties in (sweep["properties"], profile["properties"], fields):
        assert [key for key, value in properties.items() if not value.get("description")] == []
