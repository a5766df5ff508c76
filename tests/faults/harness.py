"""A driver that tries to make `run` lose, invent or needlessly repeat an entry, with an oracle on both sides.

The simulator knows every entry it ever showed; its intakes know every entry they ever accepted. The driver runs the real
command, life after life, on one state: each life has its faults at the API and at the sinks, perhaps a wrong clock or a full
disk, and ends by SIGKILL at a random moment or at a commit, or by SIGTERM. In the end all faults are taken away, and what
arrived is compared. Everything follows from a seed, which is printed; moments are the machine's, so a seed repeats the plan,
not the run.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from poller.simulator import Simulator, SimulatorSettings
from poller.store.overview import Overview, overview_of
from tests.daemon import CONTRACTS, LOGGING, LOKI, Daemon
from tests.support import clean_environment, wait_until

BATCH_EVENTS = 50
RECOVERY_SECONDS = 10.0
_ENTRIES_A_LIFE = (0, 120)

API_FAULTS = (
    ("500:20%",),
    ("429:20%:retry-after=1",),
    ("reset:20%",),
    ("truncate:20%",),
    ("cut:20%",),
    ("html:20%",),
    ("missing-hits:20%",),
    ("wrong-types:20%",),
    ("hang:10%:400ms",),
    ("drip:10%:300ms",),
    ("mixed:20%:300ms",),
    ("late:20%:1s",),
    ("401",),
    (f"contract={CONTRACTS[0]}:500",),
)
SINK_FAULTS = (
    ("sink=*:500:30%",),
    ("sink=*:429:30%:retry-after=1",),
    ("sink=*:reset:30%",),
    ("sink=*:hang:20%:300ms",),
    ("sink=logging:401",),
    ("sink=loki:403",),
    ("sink=*:lost-ack:30%",),
    ("sink=*:mixed:30%:300ms",),
    ("sink=logging:503",),
)


@dataclass
class Report:
    """What a run of the harness found. `violations` is what must be empty; each names the life it was seen in."""

    seed: int
    lives: Counter[str] = field(default_factory=Counter)
    entries: int = 0
    repeats: Counter[str] = field(default_factory=Counter)
    allowed_repeats: int = 0
    recovery_seconds: float = 0.0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lives = ", ".join(f"{kind} {count}" for kind, count in sorted(self.lives.items()))
        repeats = ", ".join(f"{sink} {self.repeats[sink]}" for sink in (LOGGING, LOKI))
        return (
            f"seed {self.seed}: {sum(self.lives.values())} lives ({lives}), {self.entries} entries, "
            f"repeats: {repeats} (allowed {self.allowed_repeats}), recovered in {self.recovery_seconds:.1f} s, "
            f"took {self.seconds:.0f} s; " + ("; ".join(self.violations) or "0 lost, 0 invented, books balanced")
        )


class Harness:
    """One plan of so many lives, on one simulator and one state."""

    def __init__(
        self, directory: Path, seed: int, *, plant: str = "", patience_seconds: float = 60.0, overlap: str = "10m"
    ) -> None:
        """`plant`: a mistake of the shim's; `patience_seconds`: how long to wait for the last entry.

        Without `overlap` ("0s") nothing is read twice, which would heal some mistakes; then no entry comes late, either.
        """
        self._overlap = overlap
        self._has_late = overlap != "0s"
        self._patience_seconds = patience_seconds
        self._random = random.Random(seed)
        self._plant = plant
        self._directory = directory
        self.report = Report(seed)
        self._watermarks: dict[str, int] = {}
        self._given_up = 0  # sends that ended without a word: each may have stored a batch

    def run(self, lives: int) -> Report:
        """Go through the lives, recover, and compare. The report says what was found; nothing is raised."""
        started = time.monotonic()
        settings = SimulatorSettings(contracts=len(CONTRACTS), events=300, span_seconds=600, seed=self.report.seed)
        with Simulator(settings) as simulator:
            daemon = Daemon(self._directory, simulator)
            each = {"batch_events": str(BATCH_EVENTS), "read_timeout": '"250ms"'}
            api = {"read_timeout": '"250ms"', "max_retries": "2"}
            poll = {"initial_lookback": '"30m"', "audit_interval": '"0s"', "overlap": f'"{self._overlap}"'}
            daemon.configure(each=each, api=api, poll=poll)
            try:
                for number in range(lives):
                    self._live(daemon, number)
                self._recover(daemon)
            finally:
                daemon.close()
        self.report.seconds = time.monotonic() - started
        return self.report

    def _live(self, daemon: Daemon, number: int) -> None:
        dice = self._random
        simulator = daemon.simulator
        simulator.set_faults([*dice.choice(((), (), *self._api_faults())), *dice.choice(((), (), *SINK_FAULTS))])
        for contract in CONTRACTS:
            late = dice.choice((0.0, 0.0, 0.7)) if self._has_late else 0.0
            simulator.add_entries(contract, count=dice.randint(*_ENTRIES_A_LIFE), visible_in_seconds=late)
        environment, end = self._death()
        self.report.lives[end] += 1
        process = self._start(daemon, environment)
        if end in ("kill", "term"):
            try:
                process.wait(dice.uniform(0.05, 1.5))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL if end == "kill" else signal.SIGTERM)
        code = self._wait(process, number, end)
        if end == "term" and code not in (0, -signal.SIGTERM):
            self._violation(number, f"SIGTERM ended with {code}")
        self._check_state(daemon, number)

    def _api_faults(self) -> list[tuple[str, ...]]:
        return [faults for faults in API_FAULTS if self._has_late or not faults[0].startswith("late")]

    def _death(self) -> tuple[dict[str, str], str]:
        """How the next life is to end, and what else is wrong with it."""
        dice = self._random
        environment = {}
        if dice.random() < 0.15:
            environment["FAULT_CLOCK_SECONDS"] = str(dice.choice((-7200, -90, 90, 7200)))
        if dice.random() < 0.1:
            environment["FAULT_FILE_BYTES"] = str(dice.randint(100, 2000) * 1024)
        end = dice.choices(("kill", "commit", "term"), (5, 4, 1))[0]
        if end == "commit":
            environment["FAULT_KILL_AT_COMMIT"] = f"{dice.randint(1, 40)}:{dice.choice(('before', 'after'))}"
        return environment, end

    def _start(self, daemon: Daemon, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with daemon.stderr_file.open("ab") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.faults.shim", "run"],
                cwd=self._directory,
                env=clean_environment({**environment, "FAULT_PLANT": self._plant}),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )

    def _wait(self, process: subprocess.Popen[bytes], number: int, end: str) -> int:
        # A life whose commit never comes ends by the clock, like one that waits for a sink for ever.
        try:
            return process.wait(4 if end == "commit" else 12)
        except subprocess.TimeoutExpired:
            if end == "term":
                self._violation(number, "SIGTERM was not heeded within 12 s")
            process.kill()
            return process.wait()

    def _check_state(self, daemon: Daemon, number: int) -> None:
        state = self._overview(daemon)
        if state is None:
            return
        for row in state.contracts:
            before = self._watermarks.get(row.contract, 0)
            if row.watermark < before:
                self._violation(number, f"watermark of {row.contract} went back from {before} to {row.watermark}")
            if row.watermark > time.time() + 1:
                self._violation(number, f"watermark of {row.contract} is in the future")
            self._watermarks[row.contract] = row.watermark
        for line in state.imbalances():
            self._violation(number, f"books: {line}")

    @staticmethod
    def _overview(daemon: Daemon) -> Overview | None:
        path = daemon.state_dir / "run.db"
        return overview_of(path) if path.exists() and path.stat().st_size else None

    def _recover(self, daemon: Daemon) -> None:
        """Take all faults away; everything must arrive soon. Then compare both sides."""
        simulator = daemon.simulator
        simulator.set_faults([])
        daemon.start()
        daemon.reload()  # a person who replaced a key: parked sinks try at once
        started = time.monotonic()
        wanted = sum(log.counts()[0] for log in simulator.logs.values())
        self.report.entries = wanted

        def has_all() -> bool:
            return all(simulator.intakes[name].distinct >= wanted for name in (LOGGING, LOKI))

        try:
            wait_until(has_all, self._patience_seconds)
        except AssertionError:
            self._violation(-1, f"not everything had arrived {self._patience_seconds:.0f} s after the last fault")
        self.report.recovery_seconds = time.monotonic() - started
        daemon.stop()
        self._check_state(daemon, -1)
        self._compare(daemon)

    def _compare(self, daemon: Daemon) -> None:
        """Each entry at each sink: none lost, none invented, payloads equal (they are compared by digest), repeats few."""
        simulator = daemon.simulator
        ends = sum(self.report.lives.values())
        for name in (LOGGING, LOKI):
            books = simulator.books(name)
            self.report.repeats[name] = books.repeated
            if books.lost:
                self._violation(-1, f"{name}: {books.lost} LOST")
            if books.invented:
                self._violation(-1, f"{name}: {books.invented} INVENTED")
        outcomes = simulator.state()["intakes"][LOGGING]["outcomes"]
        unheard = sum(count for kind, count in outcomes.items() if kind in ("lost-ack", "hang", "reset", "drip"))
        self.report.allowed_repeats = BATCH_EVENTS * (ends + unheard)
        if self.report.repeats[LOGGING] > self.report.allowed_repeats:
            self._violation(-1, f"{self.report.repeats[LOGGING]} repeats, {self.report.allowed_repeats} are allowed")
        if self.report.repeats[LOKI]:
            self._violation(-1, f"{self.report.repeats[LOKI]} repeats in Loki")
        if self.report.recovery_seconds > RECOVERY_SECONDS:
            self._violation(-1, f"recovery took {self.report.recovery_seconds:.1f} s")
        if "Traceback" in daemon.stderr:
            self._violation(-1, "a traceback in the log")

    def _violation(self, life: int, what: str) -> None:
        self.report.violations.append(f"life {life}: {what}" if life >= 0 else what)


def plans(lives: int, lives_a_plan: int, seed: int) -> list[tuple[int, int]]:
    """So many lives in plans of a bearable length: (seed, lives) each."""
    count = max(1, -(-lives // lives_a_plan))
    return [(seed + number, min(lives_a_plan, lives - number * lives_a_plan)) for number in range(count)]


def run_plans(
    directory: Path, lives: int, seed: int, *, lives_a_plan: int = 50, tell: Callable[[str], None] = print
) -> list[Report]:
    """Run plan after plan, telling of each."""
    reports = []
    for plan_seed, count in plans(lives, lives_a_plan, seed):
        place = directory / f"seed-{plan_seed}"
        place.mkdir()
        report = Harness(place, plan_seed).run(count)
        tell(str(report))
        reports.append(report)
    return reports
