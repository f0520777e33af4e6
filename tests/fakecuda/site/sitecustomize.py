"""Fake GPUs in every Python process that has this folder on PYTHONPATH, as many as $FAKE_CUDA says.

Python imports this module at its start, so commands and torchrun's ranks run unchanged. torch.cuda is replaced when the
first module that uses a GPU is imported.
"""

from __future__ import annotations

import importlib.abc
import os
import sys
from typing import Any

_USE_A_GPU = {"disttrain.distributed.device", "tests.gpu.machine"}


class _Installer(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name in _USE_A_GPU:
            sys.meta_path.remove(self)
            from tests.fakecuda.install import install

            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7").split(",")
            install(min(int(os.environ["FAKE_CUDA"]), len(visible)))


if "FAKE_CUDA" in os.environ:
    sys.meta_path.insert(0, _Installer())
