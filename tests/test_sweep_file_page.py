"""The page of the sweep file: it has every top-level key, and each of its examples expands to the runs that it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from jobs.planning.cluster_profile import load_profile, override
from jobs.planning.expand import expand
from jobs.planning.sweep_file import load_sweep
from jobs.planning.sweep_sections import SECTIONS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "sweep-file.md").read_text(encoding="utf-8")
SCRIPT_PAGE = (REPOSITORY / "docs" / "your-script.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES += re.findall(r"^```yaml\n(# \d+ runs\n.*?)^```", SCRIPT_PAGE, re.MULTILINE | re.DOTALL)
# The keys that an example does not show.
REST = {"name": "example", "allocations": ["1x1", "2x1"], "base": {"model": "bert"}}


def test_every_key_has_an_example() -> None:
    assert tuple(re.findall(r"^## (.+)$", PAGE, re.MULTILINE)) == SECTIONS
    for key, section in zip(SECTIONS, re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:], strict=True):
        assert re.search(rf"^```yaml\n(?:.*\n)*?{key}:", section, re.MULTILINE), key
        assert f"| [`{key}`](#{key}) |" in PAGE


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: " ".join(yaml.safe_load(example)))
def test_example_has_its_number_of_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    (tmp_path / "data").symlink_to(REPOSITORY / "sweeps" / "data")
    path = tmp_path / "sweep.yaml"
    rest = [yaml.safe_dump({key: value}) for key, value in REST.items() if key not in yaml.safe_load(example)]
    path.write_text("".join([example, *rest]), encoding="utf-8")
    sweep = load_sweep(path)
    count = re.match(r"# (\d+) runs\n", example)
    assert count
    assert len(expand(sweep)) == int(count[1])
    override(load_profile(REPOSITORY / "slurm_templates" / "slurm.yaml"), sweep.slurm.for_all, sweep.where)
