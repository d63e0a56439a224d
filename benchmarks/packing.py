"""What packing saves: packs of lanes against solo runs, and against HF Trainer with peft.

    python benchmarks/packing.py --scenario trials16 --record trials16.jsonl

needs torch, transformers, peft, numpy and safetensors, and no installation of this project. See
`--help`, and `benchmarks/speed` for what it is made of.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed.command import main

if __name__ == "__main__":
    sys.exit(main())
