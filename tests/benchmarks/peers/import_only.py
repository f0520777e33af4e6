"""The floor of every start-up: import torch, import the one model class the ordinary way, build it.

python tests/benchmarks/peers/import_only.py bert <folder of the start weights> result.json
"""

import json
import os
import sys
import time
from pathlib import Path

import torch  # noqa: F401 - its import is what is measured

if sys.argv[1] == "bert":
    from transformers import BertForSequenceClassification as ModelClass
else:
    from transformers import ViTForImageClassification as ModelClass

model = ModelClass.from_pretrained(sys.argv[2])
built_s = time.time()

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from tests.benchmarks.work import process_start_s  # noqa: E402 - it must not be timed

Path(sys.argv[3]).write_text(json.dumps({"startup_s": built_s - process_start_s(os.getpid())}), encoding="utf-8")
