"""Proof: on the real Slurm, on two nodes, both models learn real data."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.proofs.sweeping import cluster_environ, minilm, run_sweep

MINILM_ABOVE = 0.75
VIT_ABOVE = 0.25  # ten classes: chance is 0.1


def prove() -> str:
    """Runs both sweeps on the test cluster; the accuracy of each must be above its bound."""
    environ = cluster_environ()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cpu = ("--set", "device=cpu")
        bert, bert_table = run_sweep("sst2_minilm.yaml", root, environ, *cpu, "--set", f"checkpoint={minilm()}")
        vit, vit_table = run_sweep("cifar10_vit.yaml", root, environ, *cpu)
    assert len(bert) == len(vit) == 1
    assert bert[0]["hosts"] == vit[0]["hosts"] == ["node1", "node2"]
    assert bert[0]["eval_accuracy"] > MINILM_ABOVE, f"MiniLM on SST-2: {bert[0]['eval_accuracy']}"
    assert vit[0]["eval_accuracy"] > VIT_ABOVE, f"ViT on CIFAR-10: {vit[0]['eval_accuracy']}"
    return f"""\
`sweeps/sst2_minilm.yaml` and `sweeps/cifar10_vit.yaml` run on the two-node test cluster, with one rank on each node, on
a CPU. The pretrained MiniLM is fine-tuned on 2,400 sentences of SST-2 and must classify more than {MINILM_ABOVE} of the
872 development sentences correctly. A ViT is trained from scratch on 1,400 images of CIFAR-10 and must classify more
than {VIT_ABOVE} of 300 test images correctly (chance: 0.1). The tables are the output of `sweep collect`:

```
{bert_table.strip()}

{vit_table.strip()}
```"""
