"""A model family of the user's own is found at the plan, and its code does not run there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import expand
from jobs.planning.own_family import check_family
from jobs.planning.plan import Plan, make_plan
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml

# Fails if it is imported, as on a login node without torch.
FAMILY = "import no_such_torch\nraise SystemExit('imported')\nclass Family:\n    INPUT = 'text'\n"
FILES = {
    "own.py": FAMILY,
    "package/__init__.py": "raise SystemExit('imported')\nclass Top: ...\n",
    "package/inner.py": FAMILY,
    "package/deep/model.py": FAMILY,  # a namespace package in a package
    "space/model.py": FAMILY,
    "broken.py": "x = 1\nclass Family(:\n",
    "star.py": "from package.inner import *\n",
    "lazy.py": "def __getattr__(name): ...\n",
    "bound.py": "try:\n    from a import B as Family\nexcept ImportError:\n    Other = None\n",
    "binary.py": "\0",
    "compiled.so": "its names are not text",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "model",
    [
        "own:Family", "package:Top", "package:inner", "package.inner:Family", "package.deep.model:Family",
        "space.model:Family", "star:Anything", "lazy:Anything", "bound:Family", "bound:Other", "json:JSONDecoder",
        "torch.nn:Linear", "compiled:Family",
    ],
)  # fmt: skip
def test_finds_without_importing(model: str, folder: Path) -> None:
    before = set(sys.modules)
    check_family(model, [str(folder)])
    assert {name for name in set(sys.modules) - before if name.startswith(("own", "package", "torch"))} == set()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere:Family", "model 'nowhere:Family': no module 'nowhere' (it must be next to the sweep's YAML, in the"),
        ("nowhere.at_all:Family", "model 'nowhere.at_all:Family': no module 'nowhere' ("),
        ("package.other:Family", "model 'package.other:Family': no module 'package.other' ("),
        ("own.inner:Family", "model 'own.inner:Family': no module 'own.inner' ("),
        ("json:Family", "model 'json:Family': module 'json' has no 'Family' (it is /"),
        ("own:Famly", "model 'own:Famly': module 'own' has no 'Famly' (did you mean Family?)"),
        ("space:Family", "model 'space:Family': 'space' is a folder without __init__.py ("),
        ("broken:Family", "model 'broken:Family': the module has a syntax error: invalid syntax ("),
        ("binary:Family", "model 'binary:Family': the module has a syntax error: source code "),
    ],
)
def test_a_missing_family_has_one_line(model: str, message: str, folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_family(model, [str(folder)])
    assert str(caught.value).startswith(message)


def test_an_installed_package_wins(folder: Path) -> None:
    (folder / "json.py").write_text("class Family: ...\n")
    with pytest.raises(UserError, match="module 'json' has no 'Family'"):
        check_family("json:Family", [str(folder)])


def plan_of(model: str, folder: Path, cluster: dict[str, Any] | None) -> Plan:
    text = f"name: s\nallocations: [1x1, 2x1]\nbase: {{dataset: imdb}}\naxes: {{model: [bert, {model}]}}\n"
    profile = None if cluster is None else ClusterProfile.model_validate(cluster)
    return make_plan(
        "s",
        expand(parse_sweep(parse_yaml(text, "s.yaml"), str(folder))),
        Cluster("site", "slurm", profile),
        Path("/runs"),
    )


@pytest.mark.parametrize(
    "cluster",
    [None, {}, {"python": sys.executable}, {"setup": ("export HF_HOME=/hf", " export A=$HOME/a B='c d'", "export A=")}],
)
def test_the_plan_names_line_and_module(cluster: dict[str, Any] | None, folder: Path) -> None:
    assert len(plan_of("own:Family", folder, cluster).runs) == 4
    with pytest.raises(UserError, match=r"^s\.yaml:4: axes\.model\[1\]: model 'gone:Family': no module 'gone'"):
        plan_of("gone:Family", folder, cluster)


@pytest.mark.parametrize(
    "cluster",
    [
        {"python": "/shared/venv/bin/python"},
        *(
            {"setup": ("export HF_HOME=/hf", line)}
            for line in (
                "module load mine", "export PYTHONPATH=/mine", "export A=1 && source /opt/env.sh", "export A=1; . /env",
                "export A=1 | tee log", "export A=$(start)", "export A=`start`", "export A=1\nsource x", "export -f x",
            )
        ),
    ],
)  # fmt: skip
def test_another_interpreter_may_have_it(cluster: dict[str, Any], folder: Path) -> None:
    assert len(plan_of("gone:Family", folder, cluster).runs) == 4


def test_the_working_directory_is_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert plan_of("own:Family", Path("/nowhere"), None).runs
