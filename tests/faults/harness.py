"""Tries to make the daemon lose, invent or needlessly repeat an entry, and compares what went in with what came out.

It runs the real command through the lives of a plan, on one state and one simulator. Each life has faults (of the API, the sinks,
the clock, the disk, or by people), and an end. Then all faults are removed, and the arrived entries are compared. If a person
has to act, the harness does what the documents say: it replaces a key and reloads, gives `--since` after a damaged state, and
replays dead letters.
"""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from poller.core.errors import StateError
from poller.simulator import Simulator, SimulatorSettings
from poller.store.overview import Overview, TakenBack
from poller.store.sqlite.overview import overview_of
from tests.daemon import CONTRACTS, FIRST, HTTP, LOGGING, LOKI, MOESIF, OPENSEARCH, OTLP, Daemon
from tests.faults import disk, victim
from tests.faults.oracle import FILE, KAFKA, PROOF, SINKS, TOPIC, Ends, SinkOracle, wanted
from tests.faults.people import PURGED_SINK, People
from tests.faults.plan import Life, Plan, is_gap_alone, is_limit_alone
from tests.faults.report import Account
from tests.faults.victim import Death, fixed_port
from tests.kafka_broker import END_TXN, INIT_PRODUCER_ID, PRODUCE, Broker
from tests.support import wait_until

BATCH_EVENTS = 20
UNHEARD = (PRODUCE, END_TXN, INIT_PRODUCER_ID)
RECOVERY_SECONDS = 10.0
_PATIENCE = 3.0  # this many times the recovery time, then it counts as failed
_NEW_ENTRIES = 5
_ENTRIES_AFTER_PEOPLE = 60
_IDLE_POLLS = 3
_MAX_RESTARTS = 5
_SPAN_SECONDS = 5.0
# The exit codes with which a process may end by itself in a life with this trouble.
_TROUBLED_CODES = {"read-only": (4,), "file-limit": (1, 4), "disk-full": (1, 4), "disk-fills": (1, 4)}
# A batch for Loki may hold several streams. The tight limit for a stream is below such a batch.
_LOKI_BATCH_EVENTS = 20 * BATCH_EVENTS
_TIGHT_LOKI = {"loki_stream_bytes_per_second": 50_000, "loki_stream_burst_bytes": 80_000}


class Harness:
    """Runs one plan of the daemon."""

    def __init__(
        self,
        directory: Path,
        plan: Plan,
        *,
        plant: str = "",
        overlap: str = "10m",
        interval: str = "1s",
        first_entries: int = 1000,
        span_seconds: int = 600,
        sinks: Sequence[str] = SINKS,
        slack: float = 1.0,
    ) -> None:
        """`plant`: a mistake of `plants`. With `overlap` "0s" nothing is read twice; a second read would hide some mistakes.

        The first entries lie within the last `span_seconds`. `slack`: the factor for all time limits.
        """
        self._directory = directory
        self._plan = plan
        self._plant = plant
        self._overlap = overlap
        self._interval = interval
        self._first_entries = first_entries
        self._span_seconds = span_seconds
        self._sinks = sinks
        self._recovery_seconds = slack * RECOVERY_SECONDS
        self.account = Account.of(plan)
        self._watermarks: dict[str, int] = {}
        self._taken_back: TakenBack | None = None
        self._is_clock_unseen = False  # the clock was wrong, and the API did not send the time
        self._ends = Ends(0, 0, 0)
        self._is_doubtful = False  # the state was damaged, and is not yet set aside
        self._is_down = False
        self._secret = 0

    def run(self) -> Account:
        """Go through the lives, recover, and compare. Findings are in the account; nothing is raised."""
        started = time.monotonic()
        settings = SimulatorSettings(
            contracts=len(CONTRACTS),
            events=self._first_entries,
            span_seconds=self._span_seconds,
            seed=self._plan.seed,
            port=fixed_port(),
            keep_lines=True,
            opensearch_busy_every=60,
        )
        self._directory.mkdir(exist_ok=True)
        with (
            Simulator(settings) as self._simulator,
            closing(Broker(TOPIC)) as self._broker,
            disk.Disk(self._directory / "disk") as self._disk,
        ):
            self._daemon = Daemon(self._directory, self._simulator)
            self._daemon.state_dir = self._disk.place / "state"
            # With a state that was set aside, the chain of its archive is gone: a person would begin another archive.
            sinks = self._sinks if self._plan.subject == "damage" else (*self._sinks, PROOF)
            self._oracle = SinkOracle(self._simulator, self._disk.place, self._broker, sinks)
            self._people = People(self._directory)
            try:
                for number, life in enumerate(self._plan.lives):
                    self._live(number, life)
                self._recover()
            finally:
                self._daemon.close()
        self.account.seconds = time.monotonic() - started
        return self.account

    def _configure(self, faults: Sequence[str]) -> None:
        """Small pages, windows and batches, so that there is always one in flight.

        The read timeout is short only while a sink hangs: a busy machine also answers late, and a batch would be sent again.
        """
        is_hanging = any(re.match(r"sink=[^:]+:(hang|latency|drip|mixed)", fault) for fault in faults)
        read_timeout = "250ms" if is_hanging else "10s"
        quick = 'batch_age = "100ms"\nretry_initial = "50ms"\nretry_max = "200ms"\n'
        files = (
            f'[[sinks]]\nname = "file"\ntype = "file"\n{quick}'
            f'path = "{self._disk.place}/files/{{date}}.ndjson"\nbatch_events = {BATCH_EVENTS}\n'
        )
        proof = f'[[sinks]]\nname = "{PROOF}"\ntype = "archive"\n{quick}url = "file://{self._disk.place}/proof"\n'
        stream = (
            f'[[sinks]]\nname = "{KAFKA}"\ntype = "kafka"\nbrokers = ["{self._broker.address}"]\ntopic = "{TOPIC}"\n'
            f'timeout = "1s"\ncompression = "none"\nbatch_events = {10 * BATCH_EVENTS}\n{quick}'
        )
        over_http = {
            LOGGING: {},
            LOKI: {"batch_events": str(_LOKI_BATCH_EVENTS)},
            MOESIF: {},
            # Small batches at the default of ten requests a second would exceed the time for a recovery.
            OPENSEARCH: {"requests_per_second": "1000"},
            HTTP: {"body": '"ndjson"', "requests_per_second": "1000"},
            OTLP: {"requests_per_second": "1000"},
        }
        self._daemon.configure(
            sinks={name: keys for name, keys in over_http.items() if name in self._oracle.sinks},
            each={"batch_events": str(BATCH_EVENTS), "read_timeout": f'"{read_timeout}"'},
            api={"read_timeout": '"250ms"', "max_retries": "2", "page_size": "50", "result_window": "400"},
            poll={
                "interval": f'"{self._interval}"',
                "initial_lookback": f'"{self._span_seconds + 1200}s"',
                "audit_interval": '"0s"',
                "overlap": f'"{self._overlap}"',
            },
            more="".join(
                table for name, table in ((FILE, files), (KAFKA, stream), (PROOF, proof)) if name in self._oracle.sinks
            ),
        )

    # A life

    def _live(self, number: int, life: Life) -> None:
        if life.damage is not None and disk.apply(life.damage, self._database):
            self._count("state cut off" if life.damage.is_cut else "state with flipped bits")
            self._ends = self._ends._replace(damages=self._ends.damages + 1)
            self._is_doubtful = True
        self._configure(life.faults)
        self._simulator.set_faults(life.faults)
        self._trouble_broker(life.faults)
        for contract, count in zip(CONTRACTS, life.entries, strict=True):
            self._add_entries(contract, count, life.late_seconds)
        self._trouble(life)
        seen = self._requests()
        self._daemon.process = process = self._start(life)
        if life.trouble in ("blinks", "disk-fills", "people"):
            with suppress(AssertionError):
                wait_until(lambda: self._requests() > seen or process.poll() is not None, self._recovery_seconds)
            self._trouble_at_work(number, life)
        if life.end == "heal":
            death = self._heal(number, life, process)
        else:
            death = victim.end(process, life, lambda: self._requests() > seen)
        self.account.died(death, is_at_work=self._oracle.is_behind())
        self._await_people(number)
        self._undo(life)
        self._judge_end(number, life, death)
        self._check_state(number)

    def _trouble_broker(self, faults: Sequence[str]) -> None:
        """If other sinks lose answers or connections, the broker too: it stores records, and its answer is lost."""
        is_losing = any(fault.startswith(("sink=*:lost-ack", "sink=*:reset")) for fault in faults)
        chance = Random(self._plan.seed)
        self._broker.losing = (
            (lambda api: api in UNHEARD and chance.random() < 0.3) if is_losing else (lambda api: False)
        )

    def _add_entries(self, contract: int, count: int, late_seconds: float) -> None:
        """Add entries of the last seconds: no second may have too many for the API. Without overlap all are of now, not late."""
        span = _SPAN_SECONDS if self._overlap != "0s" else 0.0
        at = datetime.now(UTC) - timedelta(seconds=span)
        self._simulator.add_entries(
            contract, count=count, at=at, span_seconds=span, visible_in_seconds=late_seconds if span else 0.0
        )

    def _start(self, life: Life) -> subprocess.Popen[bytes]:
        args = ["run"]
        if not self._database.exists() and any(self._database.parent.glob("run.db.unusable-*")):
            # As the hint says. Not an age: the process would count it from its own clock, which may be wrong.
            args += ["--since", (datetime.now(UTC) - timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M:%SZ")]
            self._count("state set aside, and --since given")
            self._is_doubtful = False
            self._watermarks = {}
        self._is_clock_unseen |= bool(life.clock) and "undated" in life.faults
        if life.clock:
            self._count("clock wrong" if len(life.clock) == 1 and life.clock[0][0] == 0 else "clock stepped")
        return victim.start(args, life, directory=self._directory, stderr=self._daemon.stderr_file, plant=self._plant)

    def _trouble(self, life: Life) -> None:
        if life.trouble:
            self._count(life.trouble)
        match life.trouble:
            case "token":
                self._simulator.change_settings(token=self._new_secret("token"))
            case "keys":
                self._simulator.change_settings(
                    api_key=self._new_secret("key"), application_id=self._new_secret("application")
                )
            case "down":
                self._is_down = self._broker.is_down = True
                self._simulator.stop()
            case "disk-full":
                self._disk.fill()
            case "read-only":
                self._disk.set_read_only(True)
            case "loki-limits":
                self._simulator.change_settings(**_TIGHT_LOKI)
            case "contract-limited":
                self._simulator.change_settings(loki_limited_contract=str(FIRST))

    def _trouble_at_work(self, number: int, life: Life) -> None:
        if life.trouble == "disk-fills":
            self._disk.fill()
        elif life.trouble == "people":
            self._people.start("run", may_purge=self._plan.subject == "run")
            if life.end not in ("commit", "write"):  # otherwise the process may be killed meanwhile
                self._await_people(number)
                for contract in CONTRACTS:
                    self._add_entries(contract, _ENTRIES_AFTER_PEOPLE, 0.0)
        else:  # the API and all sinks stop and start again
            self._simulator.stop()
            self._broker.cut()
            self._ends = self._ends._replace(outages=self._ends.outages + 1)
            self._simulator.start()

    def _await_people(self, number: int) -> None:
        for what in self._people.finish():
            if not self._is_doubtful:
                self.account.violate(what, number)

    def _undo(self, life: Life) -> None:
        """Do what a person does sooner or later: new credentials, room on the disk, the API and the sinks up again."""
        if self._is_down:
            self._is_down = self._broker.is_down = False
            self._simulator.start()
        if life.trouble == "read-only":
            self._disk.set_read_only(False)
        self._disk.empty()
        usual = SimulatorSettings()
        self._simulator.change_settings(
            **{name: getattr(usual, name) for name in (*_TIGHT_LOKI, "loki_limited_contract")}
        )
        settings = self._simulator.settings
        _replace(self._daemon.token_file, settings.token)
        _replace(self._daemon.key_file, settings.api_key)
        _replace(self._daemon.application_id_file, settings.application_id)

    def _heal(self, number: int, life: Life, process: subprocess.Popen[bytes]) -> Death:
        """Remove all faults while the process runs: it must recover by itself in time, and go on. Then end it."""
        with suppress(subprocess.TimeoutExpired):
            return Death(process.wait(life.after_seconds), "exit")
        if is_gap_alone(life):
            self._await_progress(number, process)
        if is_limit_alone(life):
            self._await_others(number, process)
        self._simulator.set_faults([])
        self._trouble_broker([])
        self._undo(life)
        self._retry_gaps(life.clock)  # otherwise a gap waits a minute before its first try
        if life.trouble == "file-limit":  # a person raises the limit
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for contract in CONTRACTS:
            self._add_entries(contract, _NEW_ENTRIES, 0.0)
        started = time.monotonic()
        if not self._await_all(process) and process.poll() is None:
            self.account.violate("it did not recover while it ran", number)
        if process.poll() is not None:
            return Death(process.returncode, "exit")
        self.account.recovered(time.monotonic() - started, self._recovery_seconds)
        return victim.end(process, Life("term", after_seconds=0.0, is_from_work=False), lambda: True)

    def _await_progress(self, number: int, process: subprocess.Popen[bytes]) -> None:
        """A part cannot be read: wait until all entries outside of the gaps arrived, and the watermarks reached the present."""
        for contract in CONTRACTS:
            self._add_entries(contract, _NEW_ENTRIES, 0.0)
        present = int(time.time())
        with suppress(AssertionError):
            wait_until(lambda: self._has_readable(present) or process.poll() is not None, self._recovery_seconds)
        if process.poll() is None and not self._is_doubtful and not self._has_readable(present):
            self.account.violate("STANDS STILL: what is outside of the gaps did not arrive", number)

    def _await_others(self, number: int, process: subprocess.Popen[bytes]) -> None:
        """Loki does not take one contract: wait until all others arrived there, and everything at the other sinks.

        Gaps and dead letters of earlier lives are retried first: they must arrive as well.
        """
        self._retry_gaps()
        self._replay()
        before = len(self._daemon.logged("contract.postponed"))
        deadline = time.monotonic() + self._recovery_seconds
        # Until the contract is postponed. It is postponed only if other contracts have events, too.
        while len(self._daemon.logged("contract.postponed")) == before and time.monotonic() < deadline:
            self._add_entries(CONTRACTS[-1], 1, 0.0)
            with suppress(AssertionError):
                wait_until(lambda: len(self._daemon.logged("contract.postponed")) > before, 1.0)
        for contract in CONTRACTS:
            self._add_entries(contract, _NEW_ENTRIES, 0.0)
        missing = lambda: self._oracle.missing_but_of(LOKI, FIRST)  # noqa: E731
        with suppress(AssertionError):
            wait_until(lambda: not missing() or process.poll() is not None, self._recovery_seconds)
        if process.poll() is None and not self._is_doubtful and (found := missing()):
            self.account.violate(f"STANDS STILL: but for {FIRST} at {LOKI}, there did not arrive {dict(found)}", number)

    def _has_readable(self, present: int) -> bool:
        state = self._overview()
        if state is None or min((row.watermark for row in state.contracts), default=0) < present:
            return False
        return self._oracle.has_all_but([(int(gap.contract), gap.start, gap.end) for gap in state.gaps])

    def _judge_end(self, number: int, life: Life, death: Death) -> None:
        """Check the exit code. By itself the process may end only if the state cannot be used."""
        allowed = (*_TROUBLED_CODES.get(life.trouble, ()), *((4,) if self._is_doubtful else ()))
        if death.kind == "deaf":
            self.account.violate(f"it did not end after SIGTERM within {victim.STOPS_WITHIN_SECONDS:.0f} s", number)
        # A process without its signal handlers yet is ended by SIGTERM directly.
        if death.kind == "term" and death.code not in (0, -signal.SIGTERM, *allowed):
            self.account.violate(f"SIGTERM ended with {death.code}", number)
        if death.kind == "exit" and death.code not in allowed:
            self.account.violate(f"it ended by itself with {death.code}", number)
        if death.code != 0:
            self._ends = self._ends._replace(processes=self._ends.processes + 1)

    # The state

    @property
    def _database(self) -> Path:
        return self._daemon.state_dir / "run.db"

    def _overview(self) -> Overview | None:
        if not self._database.exists():
            return None
        try:
            return overview_of(self._database)
        except StateError as error:
            if not self._is_doubtful:
                self.account.violate(f"the state cannot be read: {error}")
            return None

    def _check_state(self, number: int | None) -> None:
        state = self._overview()
        if state is None or self._is_doubtful:
            return
        is_taken_back = state.taken_back != self._taken_back
        self._taken_back = state.taken_back
        # If a watermark is taken back to the same time again, `taken_back` does not change.
        agreed = state.taken_back.watermark if state.taken_back else None
        for row in state.contracts:
            before = self._watermarks.get(row.contract, 0)
            if row.watermark < before and not is_taken_back and row.watermark != agreed:
                self.account.violate(f"watermark of {row.contract} went from {before} BACK to {row.watermark}", number)
            # If the API did not send the time, a wrong clock goes unseen until the next poll with a right clock.
            if row.watermark > time.time() + 1 and not (self._is_clock_unseen and number is not None):
                self.account.violate(f"watermark of {row.contract} is in the future", number)
            self._watermarks[row.contract] = row.watermark
        for line in state.imbalances():
            self.account.violate(f"books: {line}", number)
        if PURGED_SINK in state.letters:
            self._oracle.purged[PURGED_SINK] = state.letters[PURGED_SINK].purged

    # The end

    def _recover(self) -> None:
        """Remove all faults and start it once more: everything must arrive soon. Then compare both sides."""
        self._configure([])
        self._simulator.set_faults([])
        self._trouble_broker([])
        self._replay()
        self._retry_gaps()
        for _ in range(_MAX_RESTARTS):
            started = time.monotonic()
            self._daemon.process = process = self._start(Life("term"))
            self._await_up(process)
            has_arrived = self._await_all(process)
            if process.poll() is None:
                break
            # A damage of an earlier life is found only now: a person starts it once more.
            if not (self._is_doubtful and process.returncode == 4):
                self.account.violate(f"without faults it ended by itself with {process.returncode}")
        self.account.recovered(time.monotonic() - started, self._recovery_seconds)
        if not has_arrived:
            self.account.violate("not everything arrived after the last fault")
        death = victim.end(process, Life("term", after_seconds=0.0, is_from_work=False), lambda: True)
        if death.code != 0:
            self.account.violate(f"the last life ended with {death.code}")
        self._check_state(None)
        self._compare()

    def _replay(self) -> None:
        """Replay the dead letters, which the sinks refused because of their faults."""
        state = self._overview()
        dead = sum(sink.dead_letters for sink in state.sinks) if state else 0
        if dead:
            self._faults("dead letters replayed", dead)
            try:
                self._daemon.command("dead-letters", "replay")
            except AssertionError as error:
                if not self._is_doubtful:
                    self.account.violate(f"replay failed: {error}")

    def _retry_gaps(self, clock: Sequence[tuple[float, float]] = ()) -> None:
        """Retry the gaps that faults of the API left. `clock`: the clock of the life; the person's command gets the same one."""
        state = self._overview()
        if state and state.gaps:
            self._faults("gaps tried again", len(state.gaps))
            if clock:
                person = Life("term", after_seconds=0.0, is_from_work=False, clock=((0.0, clock[-1][1]),))
                victim.start(
                    ("gaps", "retry"), person, directory=self._directory, stderr=self._daemon.stderr_file
                ).wait()
                return
            try:
                self._daemon.command("gaps", "retry")
            except AssertionError as error:
                if not self._is_doubtful:
                    self.account.violate(f"retrying gaps failed: {error}")

    def _await_up(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(AssertionError):
            wait_until(lambda: process.poll() is not None or self._is_up(), self._recovery_seconds)

    def _is_up(self) -> bool:
        try:
            return self._daemon.is_up()
        except AssertionError:  # the process ended
            return False

    def _await_all(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until everything has arrived, or until polls find nothing and no event waits: then the rest will never arrive."""
        recovered_by = time.monotonic() + self._recovery_seconds
        deadline = recovered_by + (_PATIENCE - 1) * self._recovery_seconds
        is_reloaded = False
        polls: set[tuple[str, int | None]] = set()
        while time.monotonic() < deadline and process.poll() is None and not self._oracle.has_all():
            state = self._overview()
            if state is not None and state.contracts:
                # A person who replaced a key reloads, and does not wait for the retry after a minute.
                if not is_reloaded and any(row.sink.parked_at for row in state.sinks) and self._is_up():
                    is_reloaded = True
                    self._daemon.signal(signal.SIGHUP)
                if any(row.dead_letters for row in state.sinks):
                    self._replay()
                if any(gap.next_try_at > time.time() for gap in state.gaps):  # the last try failed because of a fault
                    self._retry_gaps()
                # While gaps, events or dead letters wait, polls do not count as idle. Each poll tries one gap.
                if state.gaps or any(row.waiting or row.dead_letters for row in state.sinks):
                    polls = set()
                polls |= {(row.contract, row.succeeded_at) for row in state.contracts}
                if all(sum(name == row.contract for name, _ in polls) > _IDLE_POLLS for row in state.contracts):
                    break
            # How often to look, since that is expensive. Not a wait for something.
            time.sleep(0.05 if time.monotonic() < recovered_by else 0.25)
        return self._oracle.has_all()

    def _compare(self) -> None:
        """Compare the entries at each sink: none lost, none invented, each with the same bytes, no more repeats than allowed."""
        self.account.entries = wanted(self._simulator)
        for sink, books in self._oracle.books().items():
            self.account.judge(sink, books, self._oracle.allowed_repeats(sink, self._ends, BATCH_EVENTS))
        if PROOF in self._oracle.sinks:
            for what in self._oracle.proof.findings():
                self.account.violate(f"archive: {what}")
        if self._oracle.torn_files():
            self.account.violate("a file ends in half a line")
        if "Traceback" in self._daemon.stderr:
            self.account.violate("a traceback in the log")
        for (where, kind), count in self._simulator.faults.struck.items():
            side = "API" if where == "api" else "sink"
            self._faults(f"{side}: {kind}", count)

    # Helpers

    def _requests(self) -> int:
        """How many requests to the API and to sinks were made so far."""
        simulator = self._simulator
        return sum(
            sum(counts.values())
            for traffic in (simulator.traffic, *simulator.sink_traffic.values())
            for counts in list(traffic.counts.values())
        )

    def _new_secret(self, kind: str) -> str:
        self._secret += 1
        return f"{kind}-{self._plan.seed}-{self._secret}"

    def _count(self, fault: str) -> None:
        self._faults(fault, 1)

    def _faults(self, fault: str, count: int) -> None:
        self.account.faults.update(Counter({fault: count}))


def _replace(path: Path, content: str) -> None:
    """Replace a file atomically: a process may be starting just now."""
    new = path.with_suffix(".new")
    new.write_text(content)
    new.rename(path)
