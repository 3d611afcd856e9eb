"""The programs in benchmarks/ are no part of the package: they find each other in their own folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
