"""An archive in moto's S3 whose writer is killed again and again: `python -m tests.archive_soak --kills 300 --entries 100000`.

With `--replicas 2`, two daemons share a state in PostgreSQL and take over from each other. The bucket has versions and object
lock. Some requests to the storage fail: see `hostile_storage`. After each `kill -9`, `archive verify` may report only the batch
that was being written. At the end it must report nothing; every entry is in exactly one object, every object has one version.

Prints the result. `test_archive_s3.py` runs a short soak with one replica and one with two.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from poller.archive import Listed
from poller.archive.s3 import S3Place
from poller.archive.signing import is_signed_by, read_public_key
from poller.config import ArchiveSink, Config, Secret, SecretSource
from poller.core.evidence.digest import DATA, batch_of, number_of
from poller.pipeline.verify import Report, Verifier
from poller.simulator import Simulator, SimulatorSettings
from tests.commands import run_command, start_process
from tests.hostile_storage import HostileStorage
from tests.moto import REGION, client, serving
from tests.postgres import Server
from tests.support import COMMAND, clean_environment, wait_until

BUCKET = "audit-soak"
URL = f"s3://{BUCKET}/prefix"
_LEASE_SECONDS = 3
_PATIENCE_SECONDS = 6.0
_SHARE = 0.05  # share of the requests to the storage that fail
_EXPIRED_SHARE = 0.1  # share of the rounds in which the key is expired
_CONFIG = """
state_dir = "{directory}/state"
{state}
[api]
url = "{api}"
requests_per_second = 1000

[poll]
interval = "1s"
initial_lookback = "1d"
audit_interval = "2s"

[evidence]
signing_key_file = "{directory}/evidence.key"

[http]
listen = ""

[[sinks]]
name = "proof"
type = "archive"
url = "{url}"
endpoint_url = "{s3}"
region = "{region}"
access_key_env = "ACCESS"
secret_key_env = "SECRET"
object_lock = "compliance"
retain = "1d"
batch_age = "500ms"
batch_events = 2000
retry_initial = "50ms"
retry_max = "200ms"
"""


class Result(NamedTuple):
    """The result of a soak. `in_mid_batch`: the number of kills that left a batch partly written."""

    kills: int
    stops: int
    in_mid_batch: int
    faults: dict[str, int]
    entries: int
    archived: int
    repeated: int
    missing: int
    objects: int
    digests: int
    more_versions: int
    found_after_kills: list[str]
    verified: str
    code: int


class Soak:
    """The daemons, the API that they read, and the storage that they write to."""

    def __init__(self, stack: ExitStack, replicas: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.directory = Path(tempfile.mkdtemp(prefix="archive-soak-"))
        stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.s3 = stack.enter_context(serving(self.directory))
        self.storage = stack.enter_context(HostileStorage(self.s3, _SHARE, seed))
        self.api = stack.enter_context(Simulator(SimulatorSettings(contracts=5, events=0)))
        client("s3", self.s3).create_bucket(
            Bucket=BUCKET,
            CreateBucketConfiguration={"LocationConstraint": REGION},
            ObjectLockEnabledForBucket=True,
        )
        state = ""
        if replicas > 1:
            server = Server()
            stack.callback(server.remove)
            server.create()
            server.start()
            state = f'[state]\nurl = "{server.url()}"\nlease = "{_LEASE_SECONDS}s"\n'
        keys = {
            "directory": self.directory, "state": state, "api": self.api.url, "url": URL, "s3": self.storage.url,
            "region": REGION,
        }  # fmt: skip
        (self.directory / "ionos-poller.toml").write_text(_CONFIG.format(**keys))
        self.environment = {"IONOS_API_TOKEN": self.api.token, "ACCESS": "testing", "SECRET": "testing"}
        self.command("archive", "keygen", str(self.directory / "evidence.key"))
        self._public = read_public_key(self.directory / "evidence.pub")
        self._seen = Seen(self.s3)
        self.processes = [self.start() for _ in range(replicas)]
        stack.callback(self.end)
        self.kills = self.stops = self.in_mid_batch = 0
        self.found: list[str] = []

    def command(self, *args: str) -> subprocess.CompletedProcess[str]:
        return run_command(*args, cwd=self.directory, env=self.environment, timeout=300)

    def start(self) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            environment = clean_environment(self.environment)
            return start_process([*COMMAND, "run"], cwd=self.directory, env=environment, stdout=log, stderr=log)

    def kill_one(self) -> None:
        """Kill a daemon at a random moment, check the archive, start it again. Before that, another replica may be paused."""
        index = self.chance.randrange(len(self.processes))
        self.storage.is_expired = self.chance.random() < _EXPIRED_SHARE
        last, deadline = self.storage.requests + self.chance.randrange(40), time.monotonic() + _PATIENCE_SECONDS
        while self.storage.requests <= last and time.monotonic() < deadline:
            time.sleep(0.01)  # until the storage has received these requests; nothing is assumed after the deadline
        time.sleep(self.chance.uniform(0.0, 0.1))  # part of the fault: the moment is random
        if len(self.processes) > 1 and self.chance.random() < 0.1:
            self.stand_still(1 - index)
        process = self.processes[index]
        process.kill()
        process.wait()
        self.judge()
        self.processes[index] = self.start()
        if self.storage.is_expired:
            self.storage.is_expired = False
            if len(self.processes) > 1:  # the sink is parked: report that its key is valid
                self.command("sinks", "retry", "proof")

    def stand_still(self, index: int) -> None:
        """Pause a daemon for longer than its lease: the other one takes over, and commits of the paused one are refused."""
        self.processes[index].send_signal(signal.SIGSTOP)
        time.sleep(_LEASE_SECONDS + 1)  # the pause is the fault
        self.processes[index].send_signal(signal.SIGCONT)
        self.stops += 1

    def judge(self) -> None:
        """Run `archive verify` and record each finding, except those about the batch that is being written."""
        report = self.verify()
        open_ = 0
        for where, message in report.findings:
            digest = number_of(where)
            number = digest[0] if digest else batch_of(where)
            open_ += number == report.digests + 1
            if number != report.digests + 1:
                self.found.append(f"{where} {message}")
        self.in_mid_batch += open_ > 0

    def verify(self) -> Report:
        return Verifier(self._seen, is_signed_by, key=self._public, workers=2).run()

    def add(self, count: int) -> None:
        """Add entries of the last two minutes, of all contracts."""
        contracts = list(self.api.contracts)
        for number, contract in enumerate(contracts):
            share = count * (number + 1) // len(contracts) - count * number // len(contracts)
            if share:
                at = datetime.now(UTC) - timedelta(seconds=120)
                self.api.add_entries(contract, count=share, at=at, span_seconds=100)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


class Seen(S3Place):
    """The bucket, read without the faulty proxy. The content of a key with a single version is read only once."""

    def __init__(self, s3: str) -> None:
        key = SecretSource("inline", "", path="secret", inline=Secret("testing"))
        keys = {"endpoint_url": s3, "region": REGION, "access_key": key, "secret_key": key}
        super().__init__(ArchiveSink(name="archive", url=URL, **keys), Config())  # type: ignore[arg-type]
        self._contents: dict[str, bytes] = {}
        self._written_again: set[str] = set()

    def listing(self, prefix: str) -> Iterator[Listed]:
        for listed in super().listing(prefix):
            if listed.versions > 1 or listed.is_deleted:
                self._written_again.add(listed.key)
            yield listed

    def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
        if key not in self._contents or key in self._written_again:
            content = super().get(key)
            if content is None:
                return None
            self._contents[key] = content
        return self._contents[key]


def soak(kills: int, entries: int, seed: int = 1, replicas: int = 1, seconds: float = math.inf) -> Result:
    """Kill daemons `kills` times while `entries` entries of five contracts are archived; then let them finish, and verify.

    After `seconds`, no further kill begins.
    """
    with ExitStack() as stack:
        run = Soak(stack, replicas, seed)
        started, added = time.monotonic(), 0
        for round_ in range(kills):
            if time.monotonic() - started > seconds:
                break
            count = entries * (round_ + 1) // (kills + 1) - added
            run.add(count)
            added += count
            run.kill_one()
            run.kills += 1
            if round_ % 50 == 49:
                print(
                    f"{round_ + 1} kills, {run.in_mid_batch} in mid-batch, found: {run.found}",
                    file=sys.stderr,
                    flush=True,
                )
        run.add(entries - added)
        wait_until(lambda: run.verify().entries >= entries, 300, what="all is archived")
        for process in run.processes:
            process.terminate()
            process.wait(30)
        run.storage.share = 0.0
        verified = run.command("archive", "verify", URL)
        place = Seen(run.s3)
        held = Counter(
            line
            for listed in place.listing(DATA)
            for line in gzip.decompress(place.get(listed.key) or b"").splitlines()
        )
        expected = Counter(line for contract in run.api.contracts for line in run.api.oracle(contract))
        listed = list(place.listing(""))
        report = run.verify()
        run.found += [f"{where} {message}" for where, message in report.findings]
        run.found += filter(None, [report.stopped_by])
        return Result(
            kills=run.kills,
            stops=run.stops,
            in_mid_batch=run.in_mid_batch,
            faults=dict(run.storage.faults),
            entries=expected.total(),
            archived=held.total(),
            repeated=(held - expected).total(),
            missing=(expected - held).total(),
            objects=len(listed),
            digests=report.digests,
            more_versions=sum(one.versions > 1 for one in listed),
            found_after_kills=run.found,
            verified=verified.stdout.splitlines()[0] if verified.stdout else verified.stderr,
            code=verified.returncode,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1, choices=(1, 2), help="2: with a state in PostgreSQL")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further kill after so long")
    given = parser.parse_args()
    result = soak(given.kills, given.entries, given.seed, given.replicas, given.seconds)
    for name, value in result._asdict().items():
        print(f"{name:>17}: {json.dumps(value) if isinstance(value, dict | list) else value}")


if __name__ == "__main__":
    main()
