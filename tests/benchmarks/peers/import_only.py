"""The lower bound of every start-up: imports torch and the model class in the ordinary way, and builds the model.

python tests/benchmarks/peers/import_only.py bert <folder of the start weights> result.json
"""

import json
import os
import sys
import time
from pathlib import Path

import torch  # noqa: F401 - the import is measured

if sys.argv[1] == "bert":
    from transformers import BertForSequenceClassification as ModelClass
else:
    from transformers import ViTForImageClassification as ModelClass

model = ModelClass.from_pretrained(sys.argv[2])
built_s = time.time()

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from tests.benchmarks.work import process_start_s  # noqa: E402 - this import must not be timed

Path(sys.argv[3]).write_text(json.dumps({"startup_s": built_s - process_start_s(os.getpid())}), encoding="utf-8")
