"""Draw what peers.py measured.

    python benchmarks/peers_page.py RESULT.json [RESULT.json ...] --out PAGE.html

Works of all files go on one page, for runs that were made in parts on one machine; a later file's work replaces an
earlier one's of the same name.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from instantvision.pipeline.bench_page import comparison_page


def merge(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One result with the works of all.

    Raises:
        ValueError: they come from different devices.
    """
    devices = {result["machine"]["device"] for result in results}
    if len(devices) != 1:
        raise ValueError(
            f"the results are of {', '.join(sorted(devices))}, expected one device: draw a page of each"
        )
    works = {name: entry for result in results for name, entry in result["works"].items()}
    return results[-1] | {"works": works}


def main() -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE.html")
    args = parser.parse_args()
    merged = merge([json.loads(path.read_text(encoding="utf-8")) for path in args.results])
    args.out.write_text(comparison_page(merged), encoding="utf-8")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
