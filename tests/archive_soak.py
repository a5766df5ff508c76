"""An archive in moto's S3 through many `kill -9` of the daemon: `python -m tests.archive_soak --kills 300 --entries 100000`.

The bucket has versions and object lock. In the end every entry must be in exactly one object, every object have one version, and
`archive verify` find nothing. Prints what came of it; `test_archive_s3.py` runs a short one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from poller.simulator import Simulator, SimulatorSettings
from tests.moto import REGION, client, serving
from tests.support import COMMAND, clean_environment, run_command, wait_until

BUCKET = "audit-soak"
_CONFIG = """
state_dir = "{directory}/state"

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
url = "s3://{bucket}/prefix"
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
    """What came of it."""

    kills: int
    entries: int
    archived: int
    repeated: int
    missing: int
    objects: int
    more_versions: int
    verified: str
    code: int


def soak(kills: int, entries: int, seed: int = 1) -> Result:
    """Kill the daemon so often while it archives so many entries of five contracts, then let it finish, and look."""
    chance = random.Random(seed)
    directory = Path(tempfile.mkdtemp(prefix="archive-soak-"))
    settings = SimulatorSettings(contracts=5, events=0)
    try:
        with serving(directory) as s3, Simulator(settings) as api:
            location = {"LocationConstraint": REGION}
            client("s3", s3).create_bucket(
                Bucket=BUCKET, CreateBucketConfiguration=location, ObjectLockEnabledForBucket=True
            )
            config = directory / "ionos-poller.toml"
            config.write_text(_CONFIG.format(directory=directory, api=api.url, bucket=BUCKET, s3=s3, region=REGION))
            environment = {"IONOS_API_TOKEN": api.token, "ACCESS": "testing", "SECRET": "testing"}
            run_command("archive", "keygen", str(directory / "evidence.key"), cwd=directory)
            for round_ in range(kills + 1):
                _add(api, entries, round_, kills + 1)
                process = _start(directory, environment)
                if round_ < kills:
                    time.sleep(chance.uniform(0.3, 2.0))  # that is the fault: at any moment
                else:
                    wait_until(lambda: _archived(s3) >= entries, 300, what="all is archived")
                    process.terminate()
                    process.wait(30)
                process.kill()
                process.wait()
            verified = run_command(
                "archive", "verify", f"s3://{BUCKET}/prefix", cwd=directory, env=environment, timeout=120
            )
            held = _lines(s3)
            expected = Counter(line for contract in api.contracts for line in api.oracle(contract))
            found = client("s3", s3).get_paginator("list_object_versions").paginate(Bucket=BUCKET)
            versions = Counter(version["Key"] for page in found for version in page.get("Versions", ()))
            return Result(
                kills,
                expected.total(),
                held.total(),
                (held - expected).total(),
                (expected - held).total(),
                len(versions),
                sum(count > 1 for count in versions.values()),
                verified.stdout.splitlines()[0] if verified.stdout else verified.stderr,
                verified.returncode,
            )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _add(api: Simulator, entries: int, round_: int, rounds: int) -> None:
    """This round's share of the entries, of the last two minutes."""
    contracts = list(api.contracts)
    count = entries * (round_ + 1) // rounds - entries * round_ // rounds
    for number, contract in enumerate(contracts):
        share = count * (number + 1) // len(contracts) - count * number // len(contracts)
        if share:
            at = datetime.now(UTC) - timedelta(seconds=120)
            api.add_entries(contract, count=share, at=at, span_seconds=100)


def _start(directory: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (directory / "log").open("ab") as log:
        return subprocess.Popen(
            [*COMMAND, "run"], cwd=directory, env=clean_environment(environment), stdout=log, stderr=log
        )


def _archived(s3: str) -> int:
    """How many entries the newest digest counts."""
    found = client("s3", s3).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="prefix/digests/")
    keys = [item["Key"] for page in found for item in page.get("Contents", ()) if item["Key"].endswith(".json")]
    if not keys:
        return 0
    content = client("s3", s3).get_object(Bucket=BUCKET, Key=max(keys))["Body"].read()
    return int(json.loads(content)["entries"])


def _lines(s3: str) -> Counter[bytes]:
    bucket = client("s3", s3)
    pages = bucket.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="prefix/data/")
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    texts = (gzip.decompress(bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read()) for key in keys)
    return Counter(line for text in texts for line in text.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    result = soak(given.kills, given.entries, given.seed)
    for name, value in result._asdict().items():
        print(f"{name:>14}: {value}")


if __name__ == "__main__":
    main()
