"""`make bench`: one table of ratios against a bare loop, both measured in this run; absolute figures beside them.

    python -m tests.benchmarks [--quick] [--only NAME] [--save FILE]
    python -m tests.benchmarks --compare OLD.json NEW.json

Results are saved as JSON beside the version of the code, so that a change can be compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from poller import __version__
from tests.benchmarks.measure import Cost, bare, environment, ours, run, simulator, state_of
from tests.support import TOP

RESULTS = TOP / "tests" / "benchmarks" / "results"


class Row(NamedTuple):
    """One line of the table. `ratio` is how fast we are against what we are measured against; 1 is as fast."""

    name: str
    ratio: float | None
    goal: str
    ours_seconds: float
    theirs_seconds: float | None
    peak_mb: float
    cpu_us_per_entry: float | None
    note: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the entries")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--save", type=Path, help="where to keep the results")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"))
    arguments = parser.parse_args()
    if arguments.compare:
        compare(*arguments.compare)
        return
    scale = 10 if arguments.quick else 1
    rows = []
    print(HEADING)
    with tempfile.TemporaryDirectory() as name:
        for title, benchmark in BENCHMARKS.items():
            if arguments.only in title:
                for row in benchmark(Path(name), scale):
                    rows.append(row)
                    print(line(row), flush=True)
    path = arguments.save or RESULTS / f"{__version__}-{revision()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    print(f"\nsaved as {path}")


HEADING = (
    "| what | ratio | goal | ours s | bare s | peak MB | CPU us/entry | |\n"
    "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |"
)


def line(row: Row) -> str:
    def number(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    cells = [row.name, number(row.ratio), row.goal, number(row.ours_seconds), number(row.theirs_seconds)]
    cells += [number(row.peak_mb, 0), number(row.cpu_us_per_entry, 1), row.note]
    return "| " + " | ".join(cells) + " |"


def revision() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=TOP, check=False
    )
    return done.stdout.strip() or "unknown"


def compare(old: Path, new: Path) -> None:
    """Show how each row of one result stands to the same row of another."""
    before = {row["name"]: row for row in json.loads(old.read_text())}
    print("| what | ratio before | ratio now | peak MB before | now |\n| --- | ---: | ---: | ---: | ---: |")
    for row in json.loads(new.read_text()):
        was = before.get(row["name"], {})
        cells = [was.get("ratio"), row["ratio"], was.get("peak_mb"), row["peak_mb"]]
        print(f"| {row['name']} | " + " | ".join("" if cell is None else f"{cell:.2f}" for cell in cells) + " |")


def measured(name: str, goal: str, mine: Cost, theirs: Cost | None, entries: int, note: str = "") -> Row:
    ratio = theirs.seconds / mine.seconds if theirs else None
    cpu = mine.cpu_seconds / entries * 1e6 if entries else None
    return Row(name, ratio, goal, mine.seconds, theirs.seconds if theirs else None, mine.peak_mb, cpu, note)


def collect(room: Path, scale: int) -> Iterator[Row]:
    """From the simulator into the state and out to stdout, against a loop that only asks, parses and prints."""
    events = 200_000 // scale
    with simulator(contracts=1, events=events, span="3h") as url:
        theirs = run(bare("collect", url, "10800", str(events)), env=environment(url, room), cwd=TOP)
        mine = run(ours("fetch", "--since", "4h"), env=environment(url, room / "collect"), cwd=TOP)
    assert mine.lines == theirs.lines == events, (mine.lines, theirs.lines)
    yield measured(f"collect {events:,}", ">= 0.7", mine, theirs, events)


def filter_redact(room: Path, scale: int) -> Iterator[Row]:
    """Collecting with filters and redaction, against collecting without."""
    events = 100_000 // scale
    config = room / "redact.toml"
    key = room / "hash.key"
    key.write_text("a-key-for-this-benchmark-alone\n")
    config.write_text(
        '[filter]\nexclude = [{ type = "NoSuchType" }, { action = "NOSUCH" }]\n'
        '[redact]\nmask = ["principal.sourceIP"]\nhash = ["principal.identity.username"]\n'
        f'hash_key_file = "{key}"\n'
    )
    with simulator(contracts=1, events=events, span="3h") as url:
        plain = run(ours("fetch", "--since", "4h"), env=environment(url, room / "plain"), cwd=TOP)
        command = ours("--config", str(config), "fetch", "--since", "4h")
        mine = run(command, env=environment(url, room / "redacted"), cwd=TOP)
    assert mine.lines == plain.lines == events
    yield measured(f"filter and redact {events:,}, against neither", ">= 0.75", mine, plain, events)


def memory(room: Path, scale: int) -> Iterator[Row]:
    """Peak memory by the number of entries."""
    for events in (50_000 // scale, 200_000 // scale, 1_000_000 // scale):
        with simulator(contracts=1, events=events, span="12h") as url:
            mine = run(ours("fetch", "--since", "13h"), env=environment(url, room / f"memory-{events}"), cwd=TOP)
        assert mine.lines == events
        yield measured(f"fetch {events:,}: memory", "< 90 MB", mine, None, events)


def nothing_new(room: Path, scale: int) -> Iterator[Row]:
    """A `fetch` with nothing new against a bare script that imports requests and makes the same calls."""
    with simulator(contracts=2, events=1000, span="1h") as url:
        env = environment(url, room / "idle")
        run(ours("fetch", "--since", "2h"), env=env, cwd=TOP)
        runs = 15
        mine = [run(ours("fetch"), env=env, cwd=TOP) for _ in range(runs)]
        theirs = [run(bare("idle", url, "600"), env=env, cwd=TOP) for _ in range(runs)]
    seconds = [statistics.median(cost.seconds for cost in costs) for costs in (mine, theirs)]
    note = f"{seconds[0] / seconds[1]:.2f} times a bare script"
    yield Row("fetch, nothing new", seconds[1] / seconds[0], ">= 0.67", *seconds, mine[0].peak_mb, None, note)


def deliver(room: Path, scale: int) -> Iterator[Row]:
    """From a filled outbox to one HTTP sink, against a loop that reads lines, gzips and posts."""
    events = 100_000 // scale
    with simulator(contracts=1, events=events, span="3h") as url:
        env = environment(url, room / "deliver")
        lines = room / "deliver.ndjson"
        run(ours("backfill", "--from", "4h", "--to", "0s", "--output", str(lines)), env=env, cwd=TOP)
        theirs = run(bare("deliver", str(lines), f"{url}/sink/logging/activityLog"), env=env, cwd=TOP)
        command = [sys.executable, "-m", "tests.benchmarks.deliver", str(lines), str(sink_config(room, url))]
        done = subprocess.run(
            [*command, str(room / "deliver-state")], env=env, cwd=TOP, capture_output=True, text=True, check=True
        )
        accepted = state_of(url)["intakes"]["logging"]["accepted"]
    assert accepted == 2 * events, accepted
    seconds = float(done.stdout)
    yield Row(f"deliver {events:,}", theirs.seconds / seconds, ">= 0.7", seconds, theirs.seconds, 0, None)


def end_to_end(room: Path, scale: int) -> Iterator[Row]:
    """Collect, commit durably, deliver over HTTP, against a loop that keeps no state; then with latency and many contracts."""
    for latency, contracts, events, goal in (
        (0, 1, 200_000 // scale, ">= 0.8"),
        (50, 8, 10_000 // scale, ""),
        (150, 8, 10_000 // scale, ">= 5"),
    ):
        with simulator(contracts=contracts, events=events, span="3h", latency_ms=latency) as url:
            sink_url = f"{url}/sink/logging/activityLog"
            theirs = run(bare("end-to-end", url, "10800", str(events), sink_url), env=environment(url, room), cwd=TOP)
            before = state_of(url)["intakes"]["logging"]["accepted"]
            config = sink_config(room, url)
            jobs = "16" if latency else "4"
            command = ours("--config", str(config), "backfill", "--from", "4h", "--to", "0s", "--sink", "logging")
            mine = run([*command, "--jobs", jobs], env=environment(url, room / f"end-{latency}-{contracts}"), cwd=TOP)
            accepted = state_of(url)["intakes"]["logging"]["accepted"] - before
        assert accepted == contracts * events == before, (accepted, before)
        yield measured(f"end to end, {contracts} x {events:,}, {latency} ms", goal, mine, theirs, contracts * events)


def many_contracts(room: Path, scale: int) -> Iterator[Row]:
    """A thousand contracts with little activity, polled once."""
    contracts = 1000 // scale
    with simulator(contracts=contracts, events=10, span="1h", latency_ms=50) as url:
        env = environment(url, room / "many", IONOS_POLLER_API__CONCURRENCY="16")
        first = run(ours("fetch", "--since", "2h"), env=env, cwd=TOP)
        second = run(ours("fetch"), env=env, cwd=TOP)
    assert first.lines == contracts * 10
    yield measured(f"{contracts} contracts, first poll, 50 ms", "", first, None, 0)
    yield measured(f"{contracts} contracts, nothing new, 50 ms", "< 10 s", second, None, 0)


def tutorial(room: Path, scale: int) -> Iterator[Row]:
    """A stand-in of the tutorial's script: sequential, in memory, with a sleep."""
    events = 20_000 // scale
    with simulator(contracts=2, events=events, span="3h") as url:
        theirs = run(bare("tutorial", url, "10800", str(events)), env=environment(url, room), cwd=TOP)
        mine = run(ours("fetch", "--since", "4h"), env=environment(url, room / "tutorial"), cwd=TOP)
    yield measured(f"collect 2 x {events:,}, against the tutorial's way", "", mine, theirs, 2 * events)


def sink_config(room: Path, url: str) -> Path:
    path = room / "sink.toml"
    path.write_text(
        f'[[sinks]]\nname = "logging"\ntype = "logging-service"\nurl = "{url}/sink/logging"\ntag = "activityLog"\n'
        'api_key = "demo-key"\nrequests_per_second = 10000\n'
    )
    path.chmod(0o600)
    return path


BENCHMARKS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    "collect": collect,
    "filter-redact": filter_redact,
    "memory": memory,
    "nothing-new": nothing_new,
    "deliver": deliver,
    "end-to-end": end_to_end,
    "many-contracts": many_contracts,
    "tutorial": tutorial,
}

if __name__ == "__main__":
    main()
