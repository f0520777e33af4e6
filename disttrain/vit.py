"""The command that torchrun starts to train ViT on images: `torchrun ... vit.py --per_gpu_batch=4`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The parent folder replaces this one in the path, so that `disttrain` is importable without installation.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from disttrain.run import main

    main("vit", sys.argv[1:])
