"""Both sides of the account: the entries of the simulator, the entries at each sink, and how many repeats are allowed.

docs/delivery.md promises: at least once, and only the batch in flight may repeat, once for each end of a process and each lost
answer. Payloads are compared by the digest of their bytes.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from poller.archive.directory import DirectoryPlace
from poller.archive.signing import is_signed_by
from poller.pipeline.verify import Verifier
from poller.simulator import Simulator
from poller.simulator.intakes import digest_of
from tests.daemon import HTTP, LOGGING, LOKI, MOESIF, OPENSEARCH, OTLP
from tests.kafka_broker import Broker

FILE = "file"
PROOF = "proof"
KAFKA, TOPIC = "kafka", "activity"
SINKS = (LOGGING, LOKI, MOESIF, OPENSEARCH, HTTP, OTLP, KAFKA, FILE)
# The sink stored the batch, and its answer may be lost.
_UNHEARD = ("lost-ack", "partial", "latency")
# The same for sinks whose answer's body counts, too.
_UNREAD = ("cut", "drip", "encoding", "mixed")


class _Action(msgspec.Struct):
    transaction_id: str
    metadata: msgspec.Raw


class _Original(msgspec.Struct):
    original: str


class _Document(msgspec.Struct):
    event: _Original


class _Meta(msgspec.Struct):
    time: datetime


class _Entry(msgspec.Struct):
    meta: _Meta


class Books(NamedTuple):
    """The counts of a sink: entries that it should have, and those lost, repeated, and invented (not from the simulator)."""

    expected: int
    lost: int
    repeated: int
    invented: int


class Ends(NamedTuple):
    """The causes of allowed repeats: how many processes did not end well, outages of the sinks, and damaged states."""

    processes: int
    outages: int
    damages: int


def wanted(simulator: Simulator) -> int:
    """How many entries the simulator has, including those that it does not show yet."""
    return sum(log.counts()[0] for log in simulator.logs.values())


def shown(simulator: Simulator) -> int:
    return sum(log.counts()[1] for log in simulator.logs.values())


def given(simulator: Simulator) -> Counter[bytes]:
    """How many entries the simulator has, by digest."""
    return Counter(digest_of(line) for number in simulator.contracts for line in simulator.oracle(number))


def compare(expected: Counter[bytes], lines: Iterable[bytes]) -> Books:
    """Compare the lines that a sink took with the entries that were `given`."""
    had = Counter(digest_of(line) for line in lines)
    lost, more = expected - had, had - expected
    invented = sum(count for digest, count in more.items() if digest not in expected)
    return Books(expected.total(), lost.total(), more.total() - invented, invented)


def lines_of(files: Iterable[Path]) -> tuple[list[bytes], int]:
    """The whole lines of files, and how many files end in half of one."""
    lines: list[bytes] = []
    torn = 0
    for path in files:
        *whole, rest = path.read_bytes().split(b"\n")
        lines += whole
        torn += bool(rest)
    return lines, torn


class Proof:
    """The archive of a sink `proof`, in a directory. Its files never change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lines: dict[Path, list[bytes]] = {}

    def lines(self) -> list[bytes]:
        """The entries of all objects."""
        for path in self.directory.glob("data/**/*.ndjson.gz"):
            if path not in self._lines:
                self._lines[path] = gzip.decompress(path.read_bytes()).splitlines()
        return [line for lines in self._lines.values() for line in lines]

    def findings(self) -> list[str]:
        """The findings of `archive verify`; none if nothing was ever written."""
        if not self.directory.is_dir():
            return []
        report = Verifier(DirectoryPlace(self.directory), is_signed_by, workers=1).run()
        return [f"{where} {message}" for where, message in report.findings] + [report.stopped_by] * bool(
            report.stopped_by
        )


class SinkOracle:
    """The entries at the sinks of `run`: the simulator's intakes (it must keep lines), the broker, and files in one directory."""

    def __init__(
        self, simulator: Simulator, directory: Path, broker: Broker | None, sinks: Sequence[str] = SINKS
    ) -> None:
        """`directory` holds `files` and `proof`. `broker` may be None if Kafka is not one of the `sinks`."""
        self._simulator = simulator
        self._broker = broker
        self.sinks = sinks
        self._files = directory / "files"
        self.proof = Proof(directory / "proof")
        self.purged: Counter[str] = Counter()
        """How many dead letters a person deleted, by sink: these entries may be missing there."""

    def taken(self, sink: str) -> list[bytes]:
        """The entries that a person finds at the sink, with the bytes that they have there."""
        if sink == FILE:
            return lines_of(self._files.glob("*.ndjson"))[0]
        if sink == PROOF:
            return self.proof.lines()
        if sink == KAFKA:
            assert self._broker is not None
            return self._broker.values(TOPIC)
        lines = list(self._simulator.intakes[sink].lines)
        if sink == MOESIF:
            return [bytes(msgspec.json.decode(line, type=_Action).metadata) for line in lines]
        if sink == OPENSEARCH:
            return [msgspec.json.decode(line, type=_Document).event.original.encode() for line in lines]
        return lines

    def distinct(self, sink: str) -> int:
        """How many different entries the sink has. Cheap, because it is called often."""
        return len(set(self.taken(sink))) if sink in (FILE, KAFKA, PROOF) else self._simulator.intakes[sink].distinct

    def has_all(self) -> bool:
        count = wanted(self._simulator)
        return all(self.distinct(sink) + self.purged[sink] >= count for sink in self.sinks)

    def has_all_but(self, gaps: Iterable[tuple[int, int, int]]) -> bool:
        """Whether the files hold every entry outside of the gaps: contract, start and end in unix seconds."""
        had = set(self.taken(FILE))
        gaps = list(gaps)
        missing = [
            (number, msgspec.json.decode(line, type=_Entry).meta.time.timestamp())
            for number in self._simulator.contracts
            for line in self._simulator.oracle(number)
            if line not in had
        ]
        return all(any(number == of and start <= at < end for of, start, end in gaps) for number, at in missing)

    def missing_but_of(self, limited: str, contract: int) -> Counter[str]:
        """Sink -> how many entries are missing there. At the sink `limited`, `contract` is left out."""
        missing: Counter[str] = Counter()
        for sink in self.sinks:
            had = set(map(digest_of, self.taken(sink)))
            numbers = [number for number in self._simulator.contracts if not (sink == limited and number == contract)]
            lines = (line for number in numbers for line in self._simulator.oracle(number))
            missing[sink] = sum(digest_of(line) not in had for line in lines) - self.purged[sink]
        return +missing

    def is_behind(self) -> bool:
        """Whether some sink still lacks an entry that the API shows."""
        count = shown(self._simulator)
        return any(self.distinct(sink) < count for sink in self.sinks)

    def books(self) -> dict[str, Books]:
        """Sink -> its counts."""
        expected = given(self._simulator)
        found = {sink: compare(expected, self.taken(sink)) for sink in self.sinks}
        return {sink: books._replace(lost=max(0, books.lost - self.purged[sink])) for sink, books in found.items()}

    def torn_files(self) -> int:
        return lines_of(self._files.glob("*.ndjson"))[1]

    def allowed_repeats(self, sink: str, ends: Ends, batch_events: int) -> int:
        """How many repeats are allowed.

        After a damaged state, a person gives the time to read from: everything that was delivered since may be repeated.
        Moesif recognises an action by its id, and OpenSearch a document, however late the repeat. Loki drops an exact repeat;
        after a damage the entry is late, and may be in another stream. A reader of Kafka sees only committed records. An archive
        has each entry in one object.
        """
        again = ends.damages * wanted(self._simulator)
        if sink in (MOESIF, OPENSEARCH, PROOF):
            return 0
        if sink in (LOKI, KAFKA):
            return again
        struck = self._simulator.faults.struck
        kinds = (*_UNHEARD, *_UNREAD) if sink == OTLP else _UNHEARD
        unheard = sum(struck[sink, kind] for kind in kinds) + ends.outages
        return again + batch_events * (ends.processes + (0 if sink == FILE else unheard))
