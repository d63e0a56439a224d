"""What rules for where to train are worth: against chance, and against LoRA, at equal parameters.

    python benchmarks/importance.py record --data PATH/TO/data
    python benchmarks/importance.py report

See `--help`, and `benchmarks/importance_runs` for what it is made of.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.importance_runs.command import main

if __name__ == "__main__":
    sys.exit(main())
