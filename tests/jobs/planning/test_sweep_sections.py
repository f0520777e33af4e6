"""Unknown keys of a sweep file: the names of other tools and misspellings, in each section, with their exact hints."""

from __future__ import annotations

import pytest

from disttrain.config.field_docs import field_type
from disttrain.config.synonyms import Place, key_letters, synonyms
from disttrain.config.train_config import field_names
from disttrain.errors import UserError
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.sweep_sections import SECTIONS
from jobs.planning.yaml_file import parse_yaml

IN_PROFILE = "it is a key of the cluster profile: put it under slurm"
IN_SWEEP = "it is a key of the sweep file: put it at the top level"
ALLOCATIONS = "write allocations: [2x4], which means 2 nodes with 4 GPUs each"
ALLOCATION = "write allocation: 2x4, which means 2 nodes with 4 GPUs each"


def mistake(text: str, **overrides: str) -> str:
    document = parse_yaml(f"name: s\nallocations: [1x1]\n{text}", "s.yaml")
    with pytest.raises(UserError) as caught:
        parse_sweep(document, "/nowhere", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("parameters", "did you mean axes?"),
        ("method", "drop it: every combination of the axes runs, each to its last step"),
        ("metric", "drop it: every combination of the axes runs, each to its last step"),
        ("program", "write command: python SCRIPT.py"),
        ("learning_rate", "did you mean lr under base?"),
        ("nodes", ALLOCATIONS),
        ("gpus_per_node", ALLOCATIONS),
        ("job_name", "write name, which also names the jobs"),
        ("mem", "under slurm, write memory_gb_per_gpu, a number of GB for each GPU"),
        ("time_limit", "did you mean time under slurm?"),
        ("partition", IN_PROFILE),
        ("setup", f"it is a field of the runs: put it under base, or its values under axes; {IN_PROFILE}"),
        ("allocation", "did you mean allocations?"),
        ("axis", "did you mean axes?"),
        ("bases", "did you mean base?"),
        ("exlcude", "did you mean exclude?"),
        ("measure-link", "did you mean measure_link?"),
        ("slrum", "did you mean slurm?"),
        ("epoch", "did you mean epochs under base?"),
        ("tiem", "did you mean time under slurm?"),
        ("output_dir", "drop it: each run has its own folder"),
        ("sweep", "docs/sweep-file.md lists the keys"),
        ("entity", "docs/sweep-file.md lists the keys"),
    ],
)
def test_an_unknown_key_at_the_top_level(key: str, hint: str) -> None:
    assert mistake(f"base: {{model: bert}}\n{key}: 1\n") == f"s.yaml:4: {key}: unknown key {key!r} ({hint})"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("learning_rate", "did you mean lr?"),
        ("warmup_steps", "write warmup_ratio, a share of the steps"),
        ("save_steps", "did you mean checkpoint_every?"),
        ("epoch", "did you mean epochs?"),
        ("cpus_per_task", "did you mean cpus_per_gpu under slurm?"),
        ("nnodes", f"at the top level, {ALLOCATIONS}"),
        ("partition", IN_PROFILE),
        ("time", IN_PROFILE),
        ("seeds", IN_SWEEP),
        ("measure_link", IN_SWEEP),
        ("allocation", "did you mean allocations at the top level?"),
        ("parttion", "did you mean partition under slurm?"),
        ("output", "drop it: each run has its own folder"),
        ("ouput_dir", "drop it: each run has its own folder"),
        ("batch", "closest: per_gpu_batch, global_batch; docs/config.md lists the fields"),
        ("lr_warmup_steps", "write warmup_ratio, a share of the steps"),
        ("step", "docs/config.md lists the fields"),
        ("speed", "docs/config.md lists the fields"),
        ("mode", "docs/config.md lists the fields"),
        ("node", "docs/config.md lists the fields"),
        ("eval_delay", "docs/config.md lists the fields"),
    ],
)
def test_an_unknown_field(key: str, hint: str) -> None:
    end = f"unknown field {key!r} ({hint})"
    assert mistake(f"base: {{{key}: 1}}\n") == f"s.yaml:3: base.{key}: {end}"
    assert mistake(f"base: {{model: bert}}\naxes: {{{key}: [1]}}\n") == f"s.yaml:4: axes.{key}: {end}"
    assert mistake(f"base: {{model: bert}}\nzip: {{{key}: [1]}}\n") == f"s.yaml:4: zip.{key}: {end}"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("learning_rate", "did you mean lr?"),
        ("warmup_steps", "write warmup_ratio, a share of the steps"),
        ("partition", IN_PROFILE),
        ("xyz", "docs/config.md lists the fields"),
    ],
)
def test_an_unknown_override(key: str, hint: str) -> None:
    assert mistake("base: {model: bert}\n", **{key: "1"}) == f"--set {key}=1: unknown field {key!r} ({hint})"


@pytest.mark.parametrize("section", ["include", "exclude"])
@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("learning_rate", "did you mean lr?"),
        ("fp16", f"write precision: {field_type('precision')}"),
        ("nodes", ALLOCATION),
        ("nproc_per_node", ALLOCATION),
        ("allocations", "did you mean allocation?"),
        ("seeds", "did you mean seed?"),
        ("slurm", IN_SWEEP),
        ("axis", "did you mean axes at the top level?"),
        ("partition", IN_PROFILE),
    ],
)
def test_an_unknown_key_of_an_entry(section: str, key: str, hint: str) -> None:
    text = f"base: {{model: bert}}\n{section}:\n- {{{key}: 1}}\n"
    assert mistake(text) == f"s.yaml:5: {section}[0].{key}: unknown field {key!r} ({hint})"


def test_no_key_is_a_name_of_another_tool() -> None:
    for place, keys in ((Place.TOP, SECTIONS), (Place.SLURM, ClusterProfile.model_fields)):
        assert not {key_letters(name) for name in synonyms(place)} & {key_letters(key) for key in keys}


def test_keys_of_other_sections_are_known() -> None:
    """Under base, a key of the profile or of the sweep file is answered by its place."""
    for key in {*ClusterProfile.model_fields, *SECTIONS} - {*field_names()}:
        assert mistake(f"base: {{{key}: 1}}\n").endswith((f"({IN_PROFILE})", f"({IN_SWEEP})"))
