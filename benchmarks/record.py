"""Measure this machine with the program's own commands and keep the figures.

    python benchmarks/record.py [--size N] [--seconds S]

Runs `instantvision bench`, then `instantvision run --source test-pattern --sink null --temporal noise`, and writes both
reports as one JSON file into benchmarks/results, named after the date and the device. Run it on an otherwise idle
machine.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PROGRAM = [sys.executable, "-c", "from instantvision.cli import main; main()"]


def bench(size: str) -> dict[str, Any]:
    """The report of `instantvision bench`."""
    done = subprocess.run([*PROGRAM, "bench", "--size", size, "--json"], stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def live(size: str, fps: float, seconds: float) -> dict[str, Any]:
    """The figures of a live run from the test pattern to nowhere."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "run.json"
        command = ["run", "--source", "test-pattern", "--sink", "null", "--size", size, "--fps", f"{fps:g}"]
        # The same work for every frame, whatever moves.
        command += ["--temporal", "noise"]
        subprocess.run(
            [*PROGRAM, *command, "--duration", f"{seconds:g}", "--stats-json", str(figures)], check=True
        )
        stats: dict[str, Any] = json.loads(figures.read_text())
        return stats


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="1024", help="N or WxH in pixels")
    parser.add_argument("--fps", type=float, default=60.0, help="of the live run")
    parser.add_argument("--commit", help="that is measured, in a copy that git knows nothing of")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the live run")
    args = parser.parse_args()
    report = bench(args.size)
    machine = report["machine"]
    machine["commit"] = args.commit or machine["commit"]
    device = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    path = RESULTS / f"{machine['date'][:10]}-{device}-{args.size}.json"
    both = {"bench": report, "live": live(args.size, args.fps, args.seconds)}
    path.write_text(json.dumps(both, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
