"""How much front a searcher finds for how much training.

    python benchmarks/search_quality.py record --task trec6 --data PATH/TO/data

See `--help`, and `benchmarks/quality` for what it is made of.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quality.command import main

if __name__ == "__main__":
    sys.exit(main())
