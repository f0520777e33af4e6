"""Writes what tests/test_upgrade.py reads: files of a release, made by its own code.

At a release, in a checkout of it: `PYTHONPATH=. python NEW/tests/make_former_release.py /tmp/former`.
Then copy that folder to tests/golden/former_release. The pickle of the queued job holds the folder's path.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

SWEEP = """name: former
allocations: [1x1, 2x1]
base:
  model: bert
  dataset: ./texts
  architecture: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 8, vocab_size: 60}
  device: cpu
  max_length: 16
  max_steps: 12
  detailed_timing: true
  timing_warmup_steps: 2
  start_check_s: 0.0
  save_model: false
  num_workers: 0
"""


def write_texts(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, rows in (("train", 40), ("dev", 10)):
        lines = [f"the film is {('dull', 'bright')[row % 2]} number {row % 7}\t{row % 2}" for row in range(rows)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]))


def main(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    write_texts(target / "texts")
    (target / "sweep.yaml").write_text(SWEEP)
    environ = {**os.environ, "PYTHONPATH": os.getcwd(), "HF_HOME": str(target / "hf"), "HF_HUB_OFFLINE": "1"}
    sweep = [sys.executable, "-m", "jobs", "submit", "sweep.yaml", "--cluster", "local", "--wait", "--root", "root"]
    subprocess.run(sweep, cwd=target, env=environ, check=True)
    flags = [
        "--dataset=./texts", "--device=cpu", "--max_steps=12", "--num_workers=0", "--start_check_s=0",
        "--save_model=false", "--checkpoint_every=5", "--max_length=16", "--output_dir=killed", "--architecture",
        "{hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 8, vocab_size: 60}",
    ]  # fmt: skip
    code = (
        "import os, signal, socket, sys, torch\n"
        "import disttrain.run\n"
        "socket.gethostname = lambda: 'node1'\n"
        "disttrain.run.absolute_paths = lambda config, folder: config  # a run id that holds in every folder\n"
        "step, steps = torch.optim.AdamW.step, []\n"
        "def until_8(self, *arguments, **options):\n"
        "    steps.append(1)\n"
        "    if len(steps) == 8:\n"
        "        import time; time.sleep(2)  # for the write of the checkpoint\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *arguments, **options)\n"
        "torch.optim.AdamW.step = until_8\n"
        "disttrain.run.main('bert', sys.argv[1:])\n"
    )
    subprocess.run([sys.executable, "-c", code, *flags], cwd=target, env=environ, check=False)
    shutil.rmtree(target / "hf")
    next(target.glob("root/former/local/logs/*/*_submitted.pkl")).rename(target / "queued_job.pkl")
    shutil.rmtree(target / "root" / "former" / "local" / "logs")
    for path in target.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl") and "killed" not in path.parts:
            path.write_text(path.read_text().replace(socket.gethostname(), "node1").replace(str(target), "/former"))
        elif path.name.endswith((".lock", "tokenizer.json")):
            path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
