"""`make bench`: a table of ratios against a bare loop, both measured in this run, with absolute figures.

    python -m tests.benchmarks [--quick] [--only NAME] [--save FILE]
    python -m tests.benchmarks --show FILE.json
    python -m tests.benchmarks --compare OLD.json NEW.json

Results are saved as JSON, named after the version of the code, so that versions can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from poller import __version__
from tests.benchmarks import postgres, rows
from tests.benchmarks.row import Row
from tests.support import TOP

BENCHMARKS = rows.BENCHMARKS | postgres.BENCHMARKS
RESULTS = TOP / "tests" / "benchmarks" / "results"
HEADING = (
    "| what | ratio | goal | ours s | bare s | peak MB | CPU us/entry | KB written/1,000 | syncs/1,000 | |\n"
    "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
)


def main() -> None:
    os.umask(0o077)  # a key file that others can read is refused
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the entries")
    parser.add_argument(
        "--only", default="", help=f"rows of the groups whose name contains this: {', '.join(BENCHMARKS)}"
    )
    parser.add_argument("--save", type=Path, help="where to keep the results")
    parser.add_argument("--show", type=Path, metavar="FILE", help="the table of kept results")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"))
    arguments = parser.parse_args()
    if arguments.compare:
        compare(*arguments.compare)
        return
    if arguments.show:
        print("\n".join(table_of(arguments.show)))
        return
    found = []
    print(HEADING)
    with tempfile.TemporaryDirectory() as name:
        for title, benchmark in BENCHMARKS.items():
            if arguments.only in title:
                for row in benchmark(Path(name), 10 if arguments.quick else 1):
                    found.append(row)
                    print(line(row), flush=True)
    path = arguments.save or RESULTS / f"{__version__}-{revision()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row._asdict() for row in found], indent=1) + "\n")
    print(f"\nsaved as {path}")


def table_of(kept: Path) -> list[str]:
    """The lines of the table of saved results."""
    return [*HEADING.splitlines(), *(line(Row(**row)) for row in json.loads(kept.read_text()))]


def line(row: Row) -> str:
    def number(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    cells = [row.name, number(row.ratio), row.goal, number(row.ours_seconds), number(row.theirs_seconds)]
    cells += [number(row.peak_mb, 0), number(row.cpu_us_per_entry, 1), number(row.written_kb_per_1000, 0)]
    cells += [number(row.syncs_per_1000), row.note]
    return "| " + " | ".join(cells) + " |"


def revision() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=TOP, check=False
    )
    return done.stdout.strip() or "unknown"


def compare(old: Path, new: Path) -> None:
    """Print each row of one result next to the same row of another."""
    before = {row["name"]: row for row in json.loads(old.read_text())}
    columns = {"ratio": "ratio", "peak_mb": "peak MB", "cpu_us_per_entry": "CPU us/entry"}
    print("| what | " + " | ".join(f"{title} before | now" for title in columns.values()) + " |")
    print("| --- |" + " ---: |" * 2 * len(columns))
    for row in json.loads(new.read_text()):
        was = before.get(row["name"], {})
        cells = [value for column in columns for value in (was.get(column), row[column])]
        print(f"| {row['name']} | " + " | ".join("" if cell is None else f"{cell:.2f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
