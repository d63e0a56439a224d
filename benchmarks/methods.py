"""How methods compare: at equal parameters, each at a learning rate of its own, and their speed.

    python benchmarks/methods.py record --data PATH/TO/data
    python benchmarks/methods.py report --picture methods.html

See `--help`, and `benchmarks/method_runs` for what it is made of.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.method_runs.command import main

if __name__ == "__main__":
    sys.exit(main())
