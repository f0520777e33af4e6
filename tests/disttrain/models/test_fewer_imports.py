"""A rank that trains on texts opens few files until its first steps, and imports no library that it does not use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

# Counts the files that Python opens. On Linux the libraries below it open about 1,900 more, so that these are 7,000.
# Without the metadata of installed packages: transformers reads it of all, also of those that we do not use.
MOST_FILES = 4_630
UNUSED = {"datasets", "pandas", "pyarrow", "scipy", "sklearn", "torchvision", "accelerate"}
COUNT = """
import json, sys
opened = [0]
def count(event, arguments):
    opened[0] += event == "open" and ".dist-info" not in str(arguments[0])
sys.addaudithook(count)
from disttrain.run import main
main("bert", sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump({"opened": opened[0], "modules": sorted({name.split(".")[0] for name in sys.modules})}, file)
"""
SAME_LISTS = """
import transformers
from pathlib import Path
from disttrain.models.fewer_imports import import_text_models
import_text_models()
import transformers.models
from transformers.utils.import_utils import create_import_structure_from_path, spread_import_structure
path = Path(transformers.__file__).parent / "models" / "__init__.py"
lists = spread_import_structure(create_import_structure_from_path(str(path)))
expected = {name for modules in lists.values() for objects in modules.values() for name in objects}
assert expected and expected <= set(dir(transformers.models)), sorted(expected - set(dir(transformers.models)))[:9]
assert transformers.models.bert.BertModel and transformers.AutoModelForSequenceClassification
assert transformers.utils.is_torchvision_available() is {has_torchvision}
"""


def count(flags: list[str], folder: Path, repository: Path) -> dict[str, Any]:
    """What a run of one rank opens and imports until its second step."""
    common = ["--max_steps=2", "--device=cpu", "--start_check_s=0", "--max_eval_examples=0", "--save_model=false"]
    done = subprocess.run(
        [sys.executable, "-c", COUNT, folder / "count.json", *common, *flags, f"--output_dir={folder / 'run'}"],
        cwd=repository,
        env={**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counted: dict[str, Any] = json.loads((folder / "count.json").read_text())
    return counted


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_text_run_opens_few_files(
    pretrained: bool, texts: Path, minilm: str, tmp_path: Path, repository: Path
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = f"--checkpoint={minilm}" if pretrained else f"--architecture={json.dumps({**sizes, 'vocab_size': 200})}"
    counted = count([f"--dataset={texts}", model], tmp_path, repository)
    assert not UNUSED & set(counted["modules"])
    assert counted["opened"] <= MOST_FILES


def test_the_list_of_models_is_the_same(repository: Path) -> None:
    code = SAME_LISTS.replace("{has_torchvision}", "True")
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
