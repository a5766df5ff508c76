"""The harness for three replicas on one database: they are killed, frozen and cut off, the database crashes and fails over.

Entries come in all the time. After each step everything must recover by itself, in time. Then the tables are checked. At the end
both sides of the account are compared, as for a single replica.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from poller.config import load
from poller.core.identity import IDENTITY_BYTES
from poller.simulator import Simulator, SimulatorSettings
from poller.store.overview import Overview
from poller.store.postgres import Stores
from tests.daemon import LOGGING, LOKI, MOESIF, Daemon
from tests.faults import victim
from tests.faults.cluster_plan import REPLICAS, ClusterPlan, Fault, Step
from tests.faults.databases import Database, programs_of
from tests.faults.oracle import SinkOracle, wanted
from tests.faults.plan import Life
from tests.faults.proxy import LEASE, WORK, Proxy
from tests.faults.report import Account
from tests.support import wait_until

SINKS = (LOGGING, LOKI, MOESIF)
BATCH_EVENTS = 20
_LOKI_BATCH_EVENTS = 200
RECOVERY_SECONDS = 10.0
_LOOK_SECONDS = 2.0  # how soon a replica sees the contracts that another one gave up
_BUSY_SECONDS = 2.0  # extra time on a busy machine
_PATIENCE_SECONDS = 40.0
_LOSING_SECONDS = 3.0
_READ_SECONDS = 0.05
_COUNT_WITH_NEWCOMERS = 5  # from this `count` on, the failover also loses the joining of two new replicas
_STOPS_WITHIN_SECONDS = 12.0
_FIRST_ENTRIES = 200
_LOAD_SECONDS, _LOAD_ENTRIES = 0.4, 3
_BURST_ENTRIES = 40
_SLOW_SINKS = "sink=*:latency:90%:150ms"  # otherwise a batch is seldom in flight
# Faults of one replica: the contracts of the others must be polled as usual.
_OF_A_REPLICA = ("kill", "freeze", "pause", "term", "cut", "away", "stall", "lose-answers", "lose-leases", "rolling")


class Polls:
    """The times at which each contract was polled."""

    def __init__(self, simulator: Simulator) -> None:
        self._times: dict[int, list[float]] = {number: [] for number in simulator.contracts}
        for number, log in simulator.logs.items():
            log.page = self._noting(number, log.page)  # type: ignore[method-assign]

    def _noting(self, number: int, real: object) -> object:
        def page(*args: object, **options: object) -> object:
            self._times[number].append(time.monotonic())
            return real(*args, **options)  # type: ignore[operator]

        return page

    def has_all_since(self, at: float) -> bool:
        return all(times and times[-1] > at for times in self._times.values())

    def first_after(self, number: int, at: float) -> float | None:
        times = self._times[number]
        place = bisect_right(times, at)
        return times[place] if place < len(times) else None

    def longest_gap(self, number: int, start: float, end: float) -> float:
        """The longest time without a poll that ended in `[start, end]`, or still lasts at `end`. In seconds."""
        times = self._times[number]
        chosen = times[max(0, bisect_right(times, start) - 1) : bisect_right(times, end)]
        return max((later - at for at, later in zip(chosen, [*chosen[1:], end], strict=True)), default=end - start)


class Load(threading.Thread):
    """Adds entries all the time, unless it is paused."""

    def __init__(self, simulator: Simulator, *, may_be_late: bool) -> None:
        super().__init__(name="load", daemon=True)
        self._simulator = simulator
        self._span = 3.0 if may_be_late else 0.0
        self._goes_on = threading.Event()
        self._is_over = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        while not self._is_over.wait(_LOAD_SECONDS):
            with self._lock:
                if self._goes_on.is_set():
                    self._add(_LOAD_ENTRIES)

    def burst(self) -> None:
        """Add many entries at once, so that some are in flight when a fault strikes."""
        with self._lock:
            self._add(_BURST_ENTRIES)

    def _add(self, count: int) -> None:
        at = datetime.now(UTC) - timedelta(seconds=self._span)
        for number in self._simulator.contracts:
            self._simulator.add_entries(number, count=count, at=at, span_seconds=self._span)

    def pause(self, is_paused: bool) -> None:
        with self._lock:
            (self._goes_on.clear if is_paused else self._goes_on.set)()

    def end(self) -> None:
        self._is_over.set()
        self.join(10)


class Replica:
    """One replica: its directory, its proxy to the database, and its current process."""

    def __init__(
        self, directory: Path, simulator: Simulator, database: Database, plan: ClusterPlan, plant: str
    ) -> None:
        directory.mkdir()
        self.proxy = Proxy(database.port)
        self._plant = plant
        self._daemon = Daemon(directory, simulator)
        self._daemon.configure(
            sinks={
                LOGGING: {},
                LOKI: {"batch_events": str(_LOKI_BATCH_EVENTS)},
                MOESIF: {},
            },
            each={"batch_events": str(BATCH_EVENTS), "read_timeout": '"2s"'},
            api={"read_timeout": '"2s"', "page_size": "50", "result_window": "400"},
            poll={
                "interval": f'"{plan.interval_seconds}s"',
                "initial_lookback": '"30m"',
                "audit_interval": '"0s"',
                "overlap": f'"{plan.overlap}"',
            },
            more=(
                f'[state]\nurl = "postgresql://postgres@127.0.0.1:{self.proxy.port}/postgres"\n'
                f'lease = "{plan.lease_seconds}s"\n'
            ),
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = self._daemon.process = victim.start(
            ["run"],
            Life("term"),
            directory=self._daemon.directory,
            stderr=self._daemon.stderr_file,
            plant=self._plant,
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: signal.Signals) -> int | None:
        """Send a signal and wait.  Returns: the exit code, or None if it did not end in time and was killed."""
        assert self.process is not None
        self.send(number)
        self.send(signal.SIGCONT)  # as systemd does: a stopped process handles no signal
        try:
            return self.process.wait(_STOPS_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    @property
    def said(self) -> str:
        return self._daemon.stderr

    def lost_leases(self) -> int:
        """How often it started anew because its lease had ended."""
        return sum("contracts" in line for line in self._daemon.logged("lease.lost"))

    def close(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
        self._daemon.close()
        self.proxy.close()


class ClusterHarness:
    """One plan of three replicas."""

    def __init__(self, directory: Path, plan: ClusterPlan, *, plant: str = "", slack: float = 1.0) -> None:
        self._directory = directory
        self._plan = plan
        self._plant = plant
        self._slack = slack
        self.account = Account.of(plan)
        self._takeovers = 0  # each may repeat one batch at each sink
        self._again: Counter[str] = Counter()  # by sink: events that were delivered, and whose delivery a failover lost
        self._watermarks: dict[str, int] = {}
        self._may_go_back = False

    def run(self) -> Account:
        """Go through the steps, and compare. Findings are in the account; nothing is raised."""
        started = time.monotonic()
        plan = self._plan
        self._directory.mkdir(exist_ok=True)
        settings = SimulatorSettings(
            contracts=plan.contracts, events=_FIRST_ENTRIES, span_seconds=900, seed=plan.seed, keep_lines=True
        )
        self._database = Database(programs_of(plan.server), is_pooled=plan.is_pooled)
        self._replicas: list[Replica] = []
        try:
            with Simulator(settings) as self._simulator:
                self._polls = Polls(self._simulator)
                self._oracle = SinkOracle(self._simulator, self._directory, None, SINKS)
                self._load = Load(self._simulator, may_be_late=plan.overlap != "0s")
                self._live()
        finally:
            for replica in self._replicas:
                replica.close()
            self._database.close()
        self.account.seconds = time.monotonic() - started
        return self.account

    def _live(self) -> None:
        plan = self._plan
        for number in range(REPLICAS):
            self._replicas.append(
                Replica(self._directory / f"replica-{number}", self._simulator, self._database, plan, self._plant)
            )
        self._replicas[0].start()  # it creates the tables
        self._await(lambda: self._polls.has_all_since(0.0), "the first polls")
        for replica in self._replicas[1:]:
            replica.start()
        self._await(self._all_arrived, "the first entries arrive")
        self._await(self._is_shared_out, "the contracts are shared out")
        if plan.is_held:
            self._database.hold_snapshot()
            self.account.faults["snapshot held open"] += 1
        self._load.start()
        try:
            for number, step in enumerate(plan.steps):
                self._step(number, step)
        finally:
            self._load.end()
        self._finish()

    # A step

    def _step(self, number: int, step: Step) -> None:
        self._load.pause(False)
        self._simulator.set_faults([_SLOW_SINKS])
        kinds = {fault.kind for fault in step.faults}
        held = self._held()
        struck = {self._replicas[fault.replica].pid for fault in step.faults}
        began = time.monotonic()
        killed: dict[int, float] = {}
        self._strike_all(number, step, killed)
        is_one_left = self._ensure_one_is_left(killed)
        back = time.monotonic()
        if killed:
            back = max(back, max(killed.values()) + self._plan.lease_seconds + _LOOK_SECONDS)
        self._load.pause(True)
        self._simulator.set_faults([])
        if not self._await_healthy(back):
            self.account.violate("it did not recover", number)
        self.account.recovered(
            max(0.0, time.monotonic() - back),
            self._slack * RECOVERY_SECONDS,
            step=number,
            after=f" after {', '.join(sorted(kinds))}",
        )
        if kinds <= set(_OF_A_REPLICA):
            self._judge_polls(number, held, struck, began)
        if kinds == {"kill"} and is_one_left:
            for pid, at in killed.items():
                self._judge_takeover(number, held.get(pid, []), at)
        self._start_ended(number, killed)
        self._await(self._is_shared_out, "the contracts are shared out", number)
        self._check_tables(number)

    def _start_ended(self, number: int, killed: Mapping[int, float]) -> None:
        for replica in self._replicas:
            assert replica.process is not None
            if replica.process.poll() is not None:
                if replica.pid not in killed:
                    self.account.violate(f"a replica ended by itself with {replica.process.returncode}", number)
                replica.start()

    def _ensure_one_is_left(self, killed: dict[int, float]) -> bool:
        """Start the successors if all were killed.  Returns: whether a replica is left to take over."""
        if len(killed) < REPLICAS:
            return True
        for replica in self._replicas:
            replica.start()
        return False

    def _strike_all(self, number: int, step: Step, killed: dict[int, float]) -> None:
        """Begin all faults of a step one after the other, and end each at its time. Fills `killed`: process id -> time."""
        ends: list[tuple[float, Fault]] = []
        for place, fault in enumerate(step.faults):
            if place:
                time.sleep(step.gap_seconds)  # part of the plan: not a wait for something
            self._await_work(fault)
            if self._begin(number, fault, killed):
                self.account.faults[fault.kind] += 1
                ends.append((time.monotonic() + fault.seconds, fault))
        for at, fault in sorted(ends):
            time.sleep(max(0.0, at - time.monotonic()))  # the same
            self._end(fault, killed)

    def _await_work(self, fault: Fault) -> None:
        """Add many entries, and wait until they are being collected, or sent: then the fault does most harm."""
        began, before = time.monotonic(), self._oracle.distinct(LOGGING)
        self._load.burst()
        if fault.count % 2:
            with suppress(AssertionError):
                wait_until(lambda: self._oracle.distinct(LOGGING) > before, self._plan.interval_seconds)
            return
        contracts = self._held().get(self._replicas[fault.replica].pid, []) if self._database.is_up else []
        with suppress(AssertionError):
            wait_until(
                lambda: any(self._polls.first_after(number, began) for number in contracts),
                self._plan.interval_seconds,
            )
        time.sleep(_READ_SECONDS * fault.count)  # part of the plan: faults strike at different moments of a reading

    def _begin(  # noqa: C901, PLR0912 - only a case for each kind
        self, number: int, fault: Fault, killed: dict[int, float]
    ) -> bool:
        """Begin a fault.  Returns: whether to count it and end it."""
        replica, database = self._replicas[fault.replica], self._database
        if fault.kind in ("kill", "term", "rolling", "freeze", "pause") and replica.pid in killed:
            return False  # it was killed
        match fault.kind:
            case "kill":
                self._died(replica, "kill")
                killed[replica.pid] = time.monotonic()
                replica.end(signal.SIGKILL)
            case "term" | "rolling":
                self._leave(number, replica)
            case "freeze" | "pause":
                replica.send(signal.SIGSTOP)
            case "cut":
                replica.proxy.cut()
            case "cut-all":
                for each in self._replicas:
                    each.proxy.cut()
            case "away":
                replica.proxy.is_refusing = True
                replica.proxy.cut()
            case "stall":
                replica.proxy.stall(True)
            case "hiccup":
                for each in self._replicas:
                    each.proxy.stall(True)
            case "lose-answers" | "lose-leases":
                self._lose_answers(replica, fault)
                return False  # it counted each lost answer itself
            case "database-kill":
                database.kill()
            case "database-restart":
                database.restart()
            case "fail-over":
                self._fail_over(fault)
            case "pooler-kill":
                database.restart_pooler()
        return True

    def _end(self, fault: Fault, killed: dict[int, float]) -> None:
        replica = self._replicas[fault.replica]
        match fault.kind:
            case "freeze" | "pause" if replica.pid not in killed:
                replica.send(signal.SIGCONT)
            case "away":
                replica.proxy.is_refusing = False
            case "stall":
                replica.proxy.stall(False)
            case "hiccup":
                for each in self._replicas:
                    each.proxy.stall(False)
            case "database-kill":
                self._database.start()

    def _leave(self, number: int, replica: Replica) -> None:
        """Stop a replica with SIGTERM, and start its successor."""
        self._died(replica, "term")
        code = replica.end(signal.SIGTERM)
        if code != 0:
            self.account.violate(f"SIGTERM ended with {code}", number)
        replica.start()

    def _lose_answers(self, replica: Replica, fault: Fault) -> None:
        before = replica.proxy.lost.copy()
        replica.proxy.lose_answers(fault.count, WORK if fault.kind == "lose-answers" else LEASE)
        with suppress(AssertionError):
            wait_until(lambda: (replica.proxy.lost - before).total() >= fault.count, _LOSING_SECONDS)
        replica.proxy.lose_answers(0, ())
        for purpose, lost in (replica.proxy.lost - before).items():
            self.account.faults[f"answer to COMMIT lost: {purpose}"] += lost

    def _fail_over(self, fault: Fault) -> None:
        before: dict[str, int] = {}

        def meanwhile() -> None:
            before.update({sink: self._oracle.distinct(sink) for sink in SINKS})
            if fault.count >= _COUNT_WITH_NEWCOMERS:
                self._replace([each for each in self._replicas if each is not self._replicas[fault.replica]])
            time.sleep(fault.seconds)  # all commits from now on will be lost

        self._database.fail_over(meanwhile)
        for replica in self._replicas:
            replica.proxy.cut()
        for sink in SINKS:  # plus the batches in flight when it began
            self._again[sink] += self._oracle.distinct(sink) - before[sink] + REPLICAS * _batch(sink)
        self._may_go_back = True
        if self._plan.is_held:
            self._database.hold_snapshot()

    def _replace(self, replicas: Sequence[Replica]) -> None:
        """Kill these replicas, and wait until their successors joined. The failover then loses these new rows."""
        for replica in replicas:
            self._died(replica, "kill")
            self.account.faults["kill"] += 1
            replica.end(signal.SIGKILL)
            replica.start()
        with suppress(AssertionError):
            wait_until(lambda: self._pids() >= {replica.pid for replica in replicas}, self._slack * RECOVERY_SECONDS)

    def _pids(self) -> set[int]:
        """The processes that the database knows as replicas."""
        query = "SELECT pid FROM ionos_poller.replicas WHERE expires_at > clock_timestamp()"
        return set(map(int, self._database.primary.sql(query).split()))

    def _died(self, replica: Replica, how: str) -> None:
        self.account.lives += 1
        self.account.ends[how] += 1
        if how == "kill":
            self.account.kills_at_work += self._oracle.is_behind()
            self._takeovers += 1

    # Recovery

    def _await(self, is_so: object, what: str, step: int | None = None) -> None:
        try:
            wait_until(is_so, self._slack * _PATIENCE_SECONDS, what=what)  # type: ignore[arg-type]
        except AssertionError as error:
            self.account.violate(str(error), step)

    def _all_arrived(self) -> bool:
        count = wanted(self._simulator)
        return all(self._oracle.distinct(sink) >= count for sink in SINKS)

    def _await_healthy(self, since: float) -> bool:
        with suppress(AssertionError):
            wait_until(
                lambda: self._polls.has_all_since(since) and self._all_arrived(), self._slack * _PATIENCE_SECONDS
            )
            return True
        return False

    def _held(self) -> dict[int, list[int]]:
        """Process id -> the contracts that this replica holds."""
        rows = self._database.primary.sql(
            "SELECT r.pid, c.contract FROM ionos_poller.contracts c JOIN ionos_poller.replicas r ON r.token = c.holder"
            " WHERE r.expires_at > clock_timestamp()"
        )
        held: dict[int, list[int]] = {}
        for line in rows.splitlines():
            pid, contract = line.split("|")
            held.setdefault(int(pid), []).append(int(contract))
        return held

    def _is_shared_out(self) -> bool:
        """Whether the database knows exactly the running replicas, and each has its share."""
        pids = {replica.pid for replica in self._replicas}
        held = self._held()
        return self._pids() == pids and all(len(held.get(pid, ())) >= self._plan.contracts // REPLICAS for pid in pids)

    def _judge_polls(self, number: int, held: dict[int, list[int]], struck: set[int], began: float) -> None:
        """Check that the contracts of replicas without a fault were polled in time."""
        end = time.monotonic()
        is_rolling = self._plan.subject != "cluster"
        interval = self._plan.interval_seconds
        for pid, contracts in held.items():
            for contract in contracts:
                if pid in struck and not is_rolling:
                    continue
                gap = self._polls.longest_gap(contract, began, end)
                self.account.unpolled_intervals = max(self.account.unpolled_intervals, gap / interval)
                if gap > 2 * interval + (0.0 if is_rolling else self._slack * _BUSY_SECONDS):
                    self.account.violate(f"contract {contract} was UNPOLLED for {gap:.1f} s", number)

    def _judge_takeover(self, number: int, contracts: Sequence[int], at: float) -> None:
        plan = self._plan
        limit = plan.lease_seconds + plan.interval_seconds + _LOOK_SECONDS + self._slack * _BUSY_SECONDS
        for contract in contracts:
            first = self._polls.first_after(contract, at + 0.1)  # leaves out a request that was already in flight
            if first is not None:
                self.account.taken_over(first - at, limit, number)

    # The tables

    def _overview(self) -> Overview:
        variables = {"IONOS_POLLER_STATE__URL": self._database.primary.url()}
        stores = Stores(load(None, variables, state_dir=self._directory))
        try:
            return stores.snapshot("run")
        finally:
            stores.close()

    def _check_tables(self, number: int | None) -> None:
        state = self._overview()
        for line in state.imbalances():
            self.account.violate(f"books: {line}", number)
        for row in state.contracts:
            if row.watermark < self._watermarks.get(row.contract, 0) and not self._may_go_back:
                self.account.violate(f"watermark of {row.contract} went BACK", number)
            self._watermarks[row.contract] = row.watermark
        self._may_go_back = False
        for table, column in (("ledger", "identities"), ("segments", "directory")):
            twice = sum(count - 1 for count in self._identities(table, column).values())
            if twice:
                self.account.violate(f"{table}: {twice} identities TWICE", number)

    def _identities(self, table: str, column: str) -> Counter[tuple[str, str]]:
        """How often each identity of each contract is in a table. It must be once."""
        query = f"SELECT contract, encode({column}, 'hex') FROM ionos_poller.{table}"  # noqa: S608 - both names are our own
        rows = self._database.primary.sql(query)
        found: Counter[tuple[str, str]] = Counter()
        for line in rows.splitlines():
            contract, text = line.split("|")
            found.update((contract, identity) for identity in _identities_in(bytes.fromhex(text), column))
        return found

    # The end

    def _finish(self) -> None:
        if not self._await_healthy(time.monotonic()):
            self.account.violate("not everything arrived after the last fault")
        for replica in self._replicas:
            self._died(replica, "term")
            code = replica.end(signal.SIGTERM)
            if code != 0:
                self.account.violate(f"the last SIGTERM ended with {code}")
            if "Traceback" in replica.said:
                self.account.violate("a traceback in the log")
            self._takeovers += replica.lost_leases()
        self._check_tables(None)
        self.account.entries = wanted(self._simulator)
        for sink, books in self._oracle.books().items():
            self.account.judge(sink, books, self._allowed_repeats(sink))

    def _allowed_repeats(self, sink: str) -> int:
        """A batch for each takeover; none at sinks with keys. Deliveries that a failover lost are repeated.

        An entry that is collected again may be late for its stream in Loki. It then gets another stream, and is stored twice.
        """
        if sink == LOKI:
            return self._again[sink]
        if sink == MOESIF:
            return 0
        return self._again[sink] + self._takeovers * _batch(sink)


def _batch(sink: str) -> int:
    return _LOKI_BATCH_EVENTS if sink == LOKI else BATCH_EVENTS


def _identities_in(blob: bytes, column: str) -> Iterator[str]:
    """The identities in a row of the ledger, or in the directory of a segment. Each of its records ends with one."""
    from poller.store.segments import _RECORD

    step = IDENTITY_BYTES if column == "identities" else _RECORD.size
    for start in range(0, len(blob), step):
        yield blob[start + step - IDENTITY_BYTES : start + step].hex()
