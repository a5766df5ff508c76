"""Archives with the real command: filled, verified by us and by other programs, damaged, restored, used to rebuild a state."""

from __future__ import annotations

import gzip
import itertools
import json
import resource
import shutil
import subprocess
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from poller.archive.directory import DirectoryPlace
from poller.archive.signing import Signer, is_signed_by
from poller.core.evidence.digest import decode_key, digest_key
from poller.pipeline.verify import Verifier
from poller.store.sqlite import Stores
from tests.archives import Writer, blocks_of_evidence, entry, signer
from tests.integration.exporting import peak_bytes
from tests.integration.fetching import FIRST, SECOND, Bench, Run, Starter, failed
from tests.support import COMMAND
from tests.terminal import on_terminal

DAY = datetime(2026, 3, 1, tzinfo=UTC)
RANGE = ("--from", "2026-03-01", "--to", "2026-03-02")
COUNT = 600

CONFIG = """
[http]
listen = ""

[evidence]
signing_key_file = "evidence.key"

[[sinks]]
name = "proof"
type = "archive"
url = "file://{audit}"

[[sinks]]
name = "files"
type = "file"
path = "{files}"
"""


@pytest.fixture
def filled(bench: Starter) -> Bench:
    """A directory with an archive of a day of two contracts."""
    place = bench(contracts=2, events=0)
    for contract in (FIRST, SECOND):
        place.simulator.add_entries(contract, count=COUNT, at=DAY + timedelta(minutes=1), span_seconds=20 * 3600)
    text = CONFIG.format(audit=place.directory / "audit", files=place.directory / "again.ndjson")
    (place.directory / "ionos-poller.toml").write_text(text)
    made = place.run("archive", "keygen", "evidence.key")
    assert made.code == 0, made.stderr
    run = place.run("backfill", *RANGE, "--sink", "proof")
    assert run.code == 0, run.stderr
    return place


def test_on_a_terminal_the_verdict_is_the_first_line_and_fits(filled: Bench) -> None:
    command = [*COMMAND, "archive", "verify", "audit", "--public-key", "evidence.pub"]
    terminal = on_terminal(command, filled.directory, filled.environment())
    lines = [line for line in terminal.painted if line]
    assert lines[0].startswith(f"{2 * COUNT:,} entries of 2 contracts"), lines
    assert max(map(len, lines)) <= 80


def verify(place: Bench, *args: str) -> tuple[Run, dict[str, object]]:
    run = place.run("archive", "verify", "audit", "--public-key", "evidence.pub", "--json", *args)
    found: dict[str, object] = json.loads(run.lines[0])
    return run, found


def user_of(entry: dict[str, dict[str, dict[str, str]]]) -> str | None:
    return entry.get("principal", {}).get("identity", {}).get("username")


def objects(place: Bench) -> list[Path]:
    return sorted((place.directory / "audit/data").rglob("*.ndjson.gz"))


def test_a_backfill_makes_an_archive_that_others_can_read_and_verify(filled: Bench) -> None:
    run, found = verify(filled)
    assert (run.code, found["proven"], found["entries"], found["contracts"]) == (0, True, 2 * COUNT, 2)
    assert found["hours"] == {"complete": 48, "damaged": 0, "incomplete": [], "unstated": []}
    # DuckDB counts, groups and finds, and agrees.
    pattern = f"{filled.directory}/audit/data/**/*.ndjson.gz"
    query = f"read_json('{pattern}', hive_partitioning = true, union_by_name = true)"
    assert duckdb.sql(f"SELECT count(*) FROM {query}").fetchone() == (2 * COUNT,)  # noqa: S608 - only our own paths
    entries = [json.loads(line) for line in filled.oracle()]
    users = Counter((user_of(entry), entry["event"]["type"]) for entry in entries)
    by_user = f"SELECT principal.identity.username, event.type, count(*) FROM {query} GROUP BY ALL"  # noqa: S608 - the same
    assert {(user, kind): count for user, kind, count in duckdb.sql(by_user).fetchall()} == users
    (shown,) = blocks_of_evidence("sql")
    grouped = duckdb.sql(shown.replace("/srv/audit", f"{filled.directory}/audit")).fetchall()
    assert sum(count for *_, count in grouped) == COUNT
    uuid = next(entry["@uuid"] for entry in entries if "@uuid" in entry)
    one = f"SELECT contract FROM {query} WHERE \"@uuid\" = '{uuid}'"  # noqa: S608 - the same
    assert len(duckdb.sql(one).fetchall()) == 1
    # With a known head, `verify` finds that the end of an archive was cut off.
    (use,) = (use for name, use in json.loads(filled.run("status", "--json").lines[0])["uses"].items() if name == "run")
    assert use["sinks"] == []
    head = found["head"]
    assert isinstance(head, dict)
    known = f"{head['number']}:{head['sha256']}"
    assert verify(filled, "--head", known)[0].code == 0
    for ending in ("json", "sig"):
        (filled.directory / f"audit/digests/{head['number']:09}.{ending}").unlink()
    cut, found = verify(filled, "--head", known)
    assert (cut.code, "cut at its end" in str(found["findings"])) == (1, True)


def test_one_byte_that_was_broken_is_named_in_one_line(filled: Bench) -> None:
    path = objects(filled)[3]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    run = filled.run("archive", "verify", "audit", "--public-key", "evidence.pub")
    assert run.code == 1
    assert run.lines[0].endswith(b"NOT PROVEN: 1 finding")
    assert run.lines[2:4] == [b"complete: the API counted the same in 47 of 48 hours", b"  1 hour with findings"]
    assert max(map(len, run.lines)) <= 80
    key = path.relative_to(filled.directory / "audit")
    assert run.told == [f"ionos-poller: {key}: was changed: its SHA-256 is not the one that digest 1 names"]


@pytest.mark.parametrize("args", [(), ("--repair",)], ids=["compared", "repaired"])
def test_what_a_repair_compares_is_stated_anew_however_old_it_is(bench: Starter, args: tuple[str, ...]) -> None:
    place = bench(contracts=1, events=0)
    now = int(time.time())
    start = (now // 3600 - 10 * 24) * 3600  # a self-audit looks back for 7 days
    with closing(Stores(place.state_dir).open("run")) as state:
        state.archives.begin("proof", start)
        state.contracts.enrol([str(FIRST)], "default", start, now)
        state.contracts.skip_to(str(FIRST), now, 0)
    run = place.run("audit", "--from", "11d", "--to", "9d", *args)
    assert (run.code, run.lines[0].startswith(b"equal: 1 contract")) == (0, True), run.stderr
    with closing(Stores(place.state_dir).attach("run")) as state:
        assert state.archives.has_to_state("proof") == bool(args)


def test_an_auditor_verifies_with_openssl_sha256sum_and_jq_alone(filled: Bench) -> None:
    """Runs the script of docs/evidence.md unchanged."""
    (script,) = blocks_of_evidence("sh")
    assert all(program in script for program in ("openssl", "sha256sum", "jq"))
    work = filled.directory / "auditor"
    shutil.copytree(filled.directory / "audit", work)
    shutil.copy(filled.directory / "evidence.pub", work)

    def audit() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", script], cwd=work, capture_output=True, text=True, check=False)

    done = audit()
    assert done.returncode == 0, done.stderr
    assert f"{2 * COUNT} entries" in done.stdout
    path = next(iter(sorted((work / "data").rglob("*.ndjson.gz"))))
    path.write_bytes(path.read_bytes() + b"x")
    assert audit().returncode != 0
    path.unlink()
    assert audit().returncode != 0


def chain_of(directory: Path, *keys: Signer | None) -> None:
    """Make an archive with one digest for each key. The digest before a new key announces it."""
    writer = Writer(DirectoryPlace(directory), keys[0])
    for number, (key, following) in enumerate(itertools.pairwise([*keys, keys[-1]]), start=1):
        writer.key = key
        is_changed = key is not None and following is not None and following is not key
        writer.write([entry(number, number)], next_key=following if is_changed else None)


OLD, NEW, OTHER = signer(1), signer(2), signer(3)


@pytest.mark.parametrize(
    ("keys", "given", "is_proven"),
    [
        ((OLD, OLD, NEW, NEW), OLD, True),
        ((OLD, OLD, NEW, NEW), NEW, True),
        ((OLD, OLD, NEW, NEW), OTHER, False),
        ((OLD, OLD), NEW, False),
        ((None, None, OLD, OLD), OLD, True),
        ((None, OLD, NEW), NEW, True),
        ((None, None), OLD, False),
        ((OLD, None, OLD), OLD, False),
    ],
)
def test_an_auditor_may_have_any_key_of_an_archive_and_no_other(
    tmp_path: Path, keys: tuple[Signer | None, ...], given: Signer, is_proven: bool
) -> None:
    chain_of(tmp_path, *keys)
    public = Ed25519PublicKey.from_public_bytes(decode_key(given.key))
    (tmp_path / "evidence.pub").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (script,) = blocks_of_evidence("sh")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == is_proven, done.stderr
    assert is_proven or "NOT PROVEN: " in done.stderr
    # Our own verifier agrees.
    report = Verifier(DirectoryPlace(tmp_path), is_signed_by, key=given.key).run()
    known = {"evidence.pub", "key.pem", "listed.sums", "abandoned.keys"}
    assert all(finding.where in known for finding in report.findings) == is_proven


def test_entries_are_restored_to_a_file_and_to_a_sink(filled: Bench) -> None:
    run = filled.run("archive", "restore", "audit", "--contract", str(FIRST))
    assert (run.code, sorted(run.lines)) == (0, sorted(filled.oracle(FIRST)))
    part = filled.run("archive", "restore", "audit", "--from", "2026-03-01T03:30:00Z", "--to", "2026-03-01T05:10:00Z")
    times = [json.loads(line)["meta"]["time"] for line in part.lines]
    assert times
    assert all("2026-03-01T03:30" <= time < "2026-03-01T05:10" for time in times)
    for name in ("all.ndjson", "all.ndjson.gz"):
        assert filled.run("archive", "restore", "audit", "--output", name).code == 0
    content = (filled.directory / "all.ndjson").read_bytes()
    assert sorted(content.splitlines()) == sorted(filled.oracle())
    assert gzip.decompress((filled.directory / "all.ndjson.gz").read_bytes()) == content
    sent = filled.run("archive", "restore", "audit", "--sink", "files")
    assert sent.code == 0, sent.stderr
    lines = (filled.directory / "again.ndjson").read_bytes().splitlines()
    assert sorted(lines) == sorted(filled.oracle())
    objects(filled)[0].unlink()
    failed(filled.run("archive", "restore", "audit"), 1, "is missing")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("to", ["-", "restored.ndjson", "restored.gz"])
def test_a_restore_that_has_no_room_fails(filled: Bench, unbuffered: str, to: str) -> None:
    with (filled.directory / "printed").open("ab") as printed:
        run = filled.run(
            *("archive", "restore", "audit", "--output", to),
            # The limit would also cut off Python's compiled files, which Python does not notice.
            env={"PYTHONUNBUFFERED": unbuffered, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=printed,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        )
    failed(run, 1, "output cannot be written: File too large")
    whole, _, half = (filled.directory / "printed").read_bytes().rpartition(b"\n")
    assert not half
    assert set(whole.splitlines()) <= set(filled.oracle())
    assert not list(filled.directory.glob("*restored*"))


def test_what_a_sink_refuses_of_a_restore_is_named_and_can_be_let_go(filled: Bench) -> None:
    filled.simulator.add_entries(FIRST, [{"meta": {"time": "2026-03-01T03:00:00Z"}, "event": {"message": "x" * 2000}}])
    assert filled.run("backfill", *RANGE, "--sink", "proof", "--restart").code == 0
    config = filled.directory / "ionos-poller.toml"
    config.write_text(
        config.read_text().replace('type = "file"', 'type = "file"\nmax_event_bytes = "1KiB"\noversize = "dead-letter"')
    )
    sent = filled.run("archive", "restore", "audit", "--contract", str(FIRST), "--sink", "files")
    (line,) = [line for line in sent.told if "dead-letters list" in line]
    use = line.split("--use ")[1].split("`")[0]
    assert use.startswith("restore-")
    assert len(filled.run("dead-letters", "list", "--json", "--use", use).lines) >= 1
    failed(filled.run("backfill", "forget", use), 2, "has dead letters")
    assert filled.run("backfill", "forget", use, "--yes").lines == [f"{use} forgotten".encode()]
    assert use.encode() not in b"".join(filled.run("status").lines)


def test_a_state_is_rebuilt_and_nothing_is_collected_or_archived_twice(filled: Bench) -> None:
    failed(filled.run("archive", "rebuild-state", "audit"), 4, "there is a state already")
    shutil.rmtree(filled.state_dir)
    run = filled.run("archive", "rebuild-state", "audit")
    assert run.code == 0, run.stderr
    assert b"1,200 entries of 2 contracts" in run.lines[0]
    filled.simulator.add_entries(FIRST, count=7, at=DAY + timedelta(hours=22), span_seconds=600)
    again = filled.run("backfill", *RANGE, "--sink", "proof")
    assert again.code == 0, again.stderr
    assert "1,200 entries left out" in again.stderr
    run, found = verify(filled)
    assert (run.code, found["proven"], found["entries"]) == (0, True, 2 * COUNT + 7), found
    assert filled.run("status").code == 0


def test_a_rebuild_that_fails_leaves_no_state(filled: Bench) -> None:
    shutil.rmtree(filled.state_dir)
    broken = objects(filled)[-1]
    content = broken.read_bytes()
    broken.write_bytes(content[:-1])
    failed(filled.run("archive", "rebuild-state", "audit"), 1, "verify")
    failed(filled.run("status"), 4, "no state in")
    broken.write_bytes(content)
    assert filled.run("archive", "rebuild-state", "audit").code == 0


def test_check_looks_for_the_archive_where_the_state_says_that_it_is(filled: Bench) -> None:
    shutil.rmtree(filled.state_dir)
    assert filled.run("archive", "rebuild-state", "audit").code == 0
    archive = filled.directory / "audit"
    assert not any(b"digest" in line for line in filled.run("check", "--offline").lines)
    archive.rename(filled.directory / "unmounted")
    archive.mkdir()
    run = filled.run("check", "--offline")
    told = "nothing is here of the archive, which is at digest 2 (mount the disk"
    assert (run.code, any(told.encode() in line for line in run.lines)) == (0, True), run
    shutil.copytree(filled.directory / "unmounted", archive, dirs_exist_ok=True)
    (archive / digest_key(2)).write_bytes(b"{}")
    assert filled.run("check", "--offline").code == 1


def test_what_a_batch_without_a_digest_left_is_kept_and_the_rebuilt_archive_verifies(filled: Bench) -> None:
    """A crash left a signature without its digest. The state is lost, too."""
    filled.simulator.add_entries(FIRST, count=7, at=DAY + timedelta(hours=25), span_seconds=600)
    wanted = ("--from", "2026-03-02", "--to", "2026-03-03", "--sink", "proof")
    assert filled.run("backfill", *wanted).code == 0
    audit = filled.directory / "audit"
    number = next(int(path.name[:9]) for path in objects(filled) if "date=2026-03-02" in str(path))
    for path in audit.glob("digests/*"):
        if int(path.name[:9]) > number or path.name == f"{number:09}.json":
            path.unlink()
    (draft := audit / f"digests/.{number:09}.json.part").write_bytes(b"half")
    left = {path: path.read_bytes() for path in audit.rglob(f"{number:09}*")}
    shutil.rmtree(filled.state_dir)
    run = filled.run("archive", "rebuild-state", "audit")
    assert run.code == 0, run.stderr
    assert run.stderr.count(f"has no digest: digest {number} says that it is no part of the archive") == len(left) == 2
    assert {path: path.read_bytes() for path in left} == left
    assert not draft.exists()
    assert verify(filled)[0].code == 0
    assert filled.run("backfill", *wanted).code == 0
    checked, found = verify(filled)
    assert (checked.code, found["entries"]) == (0, 2 * COUNT + 7), found
    (script,) = blocks_of_evidence("sh")
    shutil.copy(filled.directory / "evidence.pub", audit)
    done = subprocess.run(["bash", "-c", script], cwd=audit, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{2 * COUNT + 7} entries" in done.stdout


def test_a_million_entries_are_verified_in_a_minute_and_in_little_memory(bench: Starter, tmp_path: Path) -> None:
    audit = tmp_path / "million"
    writer = Writer(DirectoryPlace(audit), signer())
    for hour in range(100):
        writer.write([entry(10_000 * hour + number, hour) for number in range(10_000)])
    process = bench(contracts=1, events=0).start("archive", "verify", str(audit))
    began = time.monotonic()
    peak = peak_bytes(process)
    assert process.stdout is not None
    assert process.stdout.read().startswith(b"1,000,000 entries of 1 contract")
    assert process.returncode == 0
    assert time.monotonic() - began < 60
    assert peak < 120 * 1024 * 1024, f"{peak / 1024 / 1024:.0f} MiB"
