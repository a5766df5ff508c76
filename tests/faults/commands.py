"""The harness for the commands that end by themselves: `fetch` and `backfill`, killed and started again until all is there.

`fetch` appends its lines to one file, as with `>>`, on a disk of its own that can be full. `backfill` writes one export after the
other: a killed one is continued, and when one is complete the next begins.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from poller.core.errors import StateError
from poller.simulator import Simulator, SimulatorSettings
from poller.store.sqlite import Stores
from poller.store.sqlite.overview import overview_of
from tests.daemon import CONTRACTS
from tests.faults import victim
from tests.faults.disk import Disk
from tests.faults.oracle import Books, compare, given, lines_of, wanted
from tests.faults.people import People
from tests.faults.plan import Life, Plan
from tests.faults.report import Account
from tests.faults.victim import Death, fixed_port
from tests.support import wait_until

RECOVERY_SECONDS = 10.0
_SPAN_SECONDS = 3000.0
_PAGE_BYTES = 4096
# No new entries: entries of the second that is not over would be missing at every end.
_AT_ONCE = Life("kill", after_seconds=60.0, is_from_work=False, entries=(0, 0))


class CommandHarness:
    """One plan of `fetch` or `backfill`."""

    def __init__(
        self, directory: Path, plan: Plan, *, plant: str = "", first_entries: int = 3000, slack: float = 1.0
    ) -> None:
        self._directory = directory
        self._first_entries = first_entries
        self._recovery_seconds = slack * RECOVERY_SECONDS
        self._plan = plan
        self._plant = plant
        self.account = Account.of(plan)
        self._stderr = directory / "stderr"
        self._outputs: list[Path] = []
        self._watermarks: dict[tuple[Path, str], int] = {}

    def run(self) -> Account:
        """Go through the lives, let the command finish, and compare."""
        started = time.monotonic()
        settings = SimulatorSettings(
            contracts=len(CONTRACTS),
            events=self._first_entries,
            span_seconds=_SPAN_SECONDS,
            seed=self._plan.seed,
            port=fixed_port(),
        )
        self._directory.mkdir(exist_ok=True)
        with Simulator(settings) as self._simulator, Disk(self._directory / "disk") as self._disk:
            self._token = self._simulator.token
            self._end = datetime.now(UTC)
            self._people = People(self._directory, self._environment())
            for number, life in enumerate(self._plan.lives):
                self._simulator.set_faults(life.faults)
                self._live(number, life)
            self._recover()
        self.account.seconds = time.monotonic() - started
        return self.account

    def _live(self, number: int, life: Life) -> Death:
        if self._plan.subject == "fetch":
            self._add_entries(life)
        output = self._next_output()
        seen = self._requests()
        if life.trouble:
            self.account.faults[life.trouble if life.trouble == "people" else f"{life.trouble}, under >>"] += 1
        room = life.at * _PAGE_BYTES  # the disk is then full in the middle of a line
        if life.trouble == "disk-full":
            self._disk.fill(room)
        process = victim.start(
            self._order(output),
            life,
            directory=self._directory,
            stderr=self._stderr,
            stdout=output if self._plan.subject == "fetch" else None,
            environment=self._environment(),
            plant=self._plant,
        )
        if life.trouble == "disk-fills":
            with suppress(AssertionError):
                wait_until(lambda: self._requests() > seen or process.poll() is not None, self._recovery_seconds)
            self._disk.fill(room)
        if life.trouble == "people":
            self._people.start(self._use())
        death = victim.end(process, life, lambda: self._requests() > seen)
        for what in self._people.finish():
            self.account.violate(what, number)
        self._disk.empty()
        self.account.died(death, is_at_work=death.code != 0)
        # 1: some contract failed, and will be read again. 3: the simulator refused the token, as planned. 4: an `audit --repair`
        # of `people` holds the state.
        if death.kind == "exit" and death.code not in (0, 1, 3, *((4,) if life.trouble == "people" else ())):
            self.account.violate(f"it ended by itself with {death.code}", number)
        if death.kind == "term" and death.code not in (0, 1, 3, 130, -signal.SIGTERM):
            self.account.violate(f"SIGTERM ended with {death.code}", number)
        if death.kind == "deaf":
            self.account.violate("SIGTERM was ignored", number)
        self._check_states(number)
        return death

    def _add_entries(self, life: Life) -> None:
        at = datetime.now(UTC) - timedelta(seconds=5)
        for contract, count in zip(CONTRACTS, life.entries, strict=True):
            if not count:
                continue
            self._simulator.add_entries(
                contract, count=count, at=at, span_seconds=5, visible_in_seconds=life.late_seconds
            )

    def _next_output(self) -> Path:
        """For `fetch` always the same; for `backfill` the export that is not complete yet."""
        if not self._outputs or (self._plan.subject == "backfill" and self._outputs[-1].exists()):
            place = self._disk.place if self._plan.subject == "fetch" else self._directory
            self._outputs.append(place / f"output-{len(self._outputs)}.ndjson")
        return self._outputs[-1]

    def _order(self, output: Path) -> list[str]:
        if self._plan.subject == "fetch":
            return ["fetch", "--since", "2h"]
        start, end = self._end - timedelta(hours=2), self._end
        return ["backfill", "--from", _text(start), "--to", _text(end), "--output", output.name]

    def _use(self) -> str:
        """The newest state: each export of a backfill has its own."""
        if self._plan.subject == "fetch":
            return "fetch"
        states = sorted((self._directory / "state").glob("backfill-*.db"), key=lambda path: path.stat().st_mtime)
        return states[-1].stem if states else "backfill"

    def _environment(self) -> dict[str, str]:
        """Small windows, so that one is always being read."""
        return {
            "IONOS_API_URL": self._simulator.url,
            "IONOS_API_TOKEN": self._token,
            "IONOS_POLLER_API__REQUESTS_PER_SECOND": "1000",
            "IONOS_POLLER_API__PAGE_SIZE": "50",
            "IONOS_POLLER_API__RESULT_WINDOW": "400",
            "IONOS_POLLER_API__READ_TIMEOUT": "250ms",
            "IONOS_POLLER_API__MAX_RETRIES": "2",
        }

    def _check_states(self, number: int | None) -> None:
        for path in (self._directory / "state").glob("*.db"):
            state = overview_of(path)
            for row in state.contracts:
                before = self._watermarks.get((path, row.contract), 0)
                if row.watermark < before:
                    self.account.violate(f"{path.name}: a watermark went BACK", number)
                self._watermarks[path, row.contract] = row.watermark
            for line in state.imbalances():
                self.account.violate(f"{path.name}: books: {line}", number)

    def _recover(self) -> None:
        """Without faults the command must finish, and then everything must be there."""
        self._simulator.set_faults([])
        started = time.monotonic()
        limit = self._recovery_seconds + self._retry_gaps()  # each run tries one gap
        death = self._live(len(self._plan.lives), _AT_ONCE)
        while self._plan.subject == "fetch" and time.monotonic() < started + limit:
            if self._has_all() and death.code != 1:
                break
            self._retry_gaps()
            death = self._live(len(self._plan.lives), _AT_ONCE)  # the last second is read when it is over
        self.account.recovered(time.monotonic() - started, limit)
        if death.code != 0:
            self.account.violate(f"without faults it ended with {death.code}")
        self._compare()

    def _retry_gaps(self) -> int:
        """Make all gaps due now.  Returns: how many gaps there are."""
        count = 0
        for path in (self._directory / "state").glob("*.db"):
            with suppress(StateError), closing(Stores(path.parent).attach(path.stem)) as state:
                for gap in state.gaps.find():
                    state.gaps.retry(gap.id, int(time.time()))
                    count += 1
        self.account.faults.update({"gaps tried again": count})
        return count

    def _has_all(self) -> bool:
        return len(set(lines_of(self._outputs)[0])) >= wanted(self._simulator)

    def _compare(self) -> None:
        self.account.entries = wanted(self._simulator)
        expected = given(self._simulator)
        for path in self._outputs:
            name = "stdout" if self._plan.subject == "fetch" else "output"
            self.account.judge(name, self._exported(path, expected), 0)
        if "Traceback" in self._stderr.read_text():
            self.account.violate("a traceback in the log")
        for (_, kind), count in self._simulator.faults.struck.items():
            self.account.faults.update(Counter({f"API: {kind}": count}))

    def _exported(self, path: Path, expected: Counter[bytes]) -> Books:
        with suppress(FileNotFoundError):
            lines, torn = lines_of([path])
            if torn:
                self.account.violate(f"{path.name} ends in half a line")
            return compare(expected, lines)
        return compare(expected, [])

    def _requests(self) -> int:
        return sum(self._simulator.traffic.counts.get("entries", {}).values())


def _text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
