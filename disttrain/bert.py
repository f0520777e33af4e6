"""The script that trains BERT on texts: `torchrun ... bert.py --per_gpu_batch=4`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Makes `disttrain` importable without installation: the parent folder replaces this folder in the path.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from disttrain.run import main

    main("bert", sys.argv[1:])
