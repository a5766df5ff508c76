"""`fetch` when something is wrong: one clear line with a remedy, the right exit code, and an intact state."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fetching import FIRST, SECOND, Bench, Starter, failed, same
from tests.support import free_port

# Credentials


def test_without_a_token_it_says_what_to_set(bench: Starter) -> None:
    place = bench()
    failed(place.fetch(env={"IONOS_API_TOKEN": ""}), 2, "no IONOS API token", "IONOS_API_TOKEN", "token_file")
    assert not place.state_dir.exists()
    no_password = {"IONOS_API_TOKEN": "", "IONOS_USERNAME": "me"}
    failed(place.fetch(env=no_password), 2, "IONOS_PASSWORD")


def test_a_wrong_token_says_what_to_do_and_costs_nothing(bench: Starter) -> None:
    place = bench()
    wrong = {"IONOS_API_TOKEN": "wrong"}
    failed(place.fetch("--since", "1h", env=wrong), 3, "401", "IONOS_API_TOKEN")
    failed(place.fetch("--contract", str(FIRST), env=wrong), 3, "401", "IONOS_API_TOKEN")
    lines = place.fetch("--since", "1h").lines
    same(lines, place.oracle())
    place.simulator.add_entries(FIRST, count=1, at=None)
    assert place.fetch(env=wrong).code == 3


def test_refused_credentials_are_to_be_replaced_where_they_come_from(bench: Starter) -> None:
    place = bench()
    token = place.directory / "token"
    token.write_text("wrong")
    token.chmod(0o600)
    config = place.directory / "accounts.toml"
    config.write_text(
        '[[accounts]]\nname = "prod"\ntoken_env = "PROD"\n[[accounts]]\nname = "test"\ntoken_file = "token"\n'
    )
    none = {"IONOS_API_TOKEN": ""}
    for env, *words in (
        ({"IONOS_POLLER_API__TOKEN_FILE": str(token)}, f"replace {token}"),
        ({"IONOS_USERNAME": "me", "IONOS_PASSWORD": "wrong"}, "set IONOS_PASSWORD again"),
        ({"CREDENTIALS_DIRECTORY": str(place.directory)}, "the file that LoadCredential= names"),
        ({"IONOS_POLLER_CONFIG": str(config), "PROD": "wrong"}, "set PROD again", f"replace {token}"),
    ):
        run = place.fetch(env={**none, **env})
        assert run.code == 3, run.stderr
        assert [word in line for word, line in zip(words, run.told, strict=True)] == [True] * len(words), run.told
        assert not any("IONOS_API_TOKEN" in line for line in run.told)


def test_a_token_file_is_read_and_a_missing_or_empty_one_is_named(bench: Starter) -> None:
    place = bench()
    token = place.directory / "token"
    env = {"IONOS_API_TOKEN": "", "IONOS_POLLER_API__TOKEN_FILE": str(token)}
    failed(place.fetch(env=env), 2, str(token))
    token.write_text("")
    assert place.fetch(env=env).code == 2
    token.write_text(f"{place.simulator.token}\n")
    same(place.fetch("--since", "1h", env=env).lines, place.oracle())


def test_a_forbidden_contract_leaves_the_others_alone(bench: Starter) -> None:
    place = bench(forbidden=(SECOND,))
    run = place.fetch("--since", "1h")
    failed(run, 1, str(SECOND), "403", "ACCESS_ACTIVITY_LOG")
    same(run.lines, place.oracle(FIRST))
    place.simulator.change_settings(forbidden=(FIRST, SECOND))
    assert place.fetch().code == 3
    place.simulator.change_settings(forbidden=())
    same(place.fetch().lines, place.oracle(SECOND))


def test_a_token_that_sees_no_contract_is_told(bench: Starter) -> None:
    failed(bench(contracts=0).fetch("--since", "1h"), 1, "no contract is visible", "check")


def test_many_failing_contracts_are_told_in_a_few_lines(bench: Starter) -> None:
    place = bench(contracts=30, events=1, faults=("path=entries:500",))
    run = place.fetch("--since", "1h", env={"IONOS_POLLER_API__MAX_RETRIES": "0"})
    assert run.code == 1
    assert len(run.told) <= 6
    assert "25 more" in run.told[-1]


# The network


def test_an_api_that_cannot_be_reached_is_told_in_one_line(bench: Starter) -> None:
    place = bench()
    quick = {"IONOS_POLLER_API__MAX_RETRIES": "0", "IONOS_POLLER_API__CONNECT_TIMEOUT": "300ms"}
    dead = f"http://127.0.0.1:{free_port()}"
    failed(place.fetch(env=quick | {"IONOS_API_URL": dead}), 1, "connection refused")
    failed(place.fetch(env=quick | {"IONOS_API_URL": "https://no-such-host.invalid"}), 1, "host name", "DNS")
    failed(place.fetch(env=quick | {"IONOS_API_URL": place.simulator.url.replace("http", "https")}), 1, "TLS")
    failed(place.fetch(env=quick | {"IONOS_API_URL": place.simulator.url + "/nowhere"}), 1, "404", "url")
    for url in ("nonsense", "ftp://x", "http://127.0.0.1:99999", "http://user:pass@host"):
        run = place.fetch(env={"IONOS_API_URL": url})
        assert (run.code, len(run.told)) == (2, 1), run
        assert "IONOS_API_URL" in run.told[0]
        assert "pass" not in run.told[0]
    same(place.fetch("--since", "1h").lines, place.oracle())
    # If only the list fails, known contracts are still tried. Each has one line.
    run = place.fetch(env=quick | {"IONOS_API_URL": dead})
    assert run.code == 1
    assert all("connection refused" in line for line in run.told)


def test_a_dead_proxy_is_named_and_no_proxy_goes_around_it(bench: Starter) -> None:
    place = bench()
    env = {
        "HTTP_PROXY": f"http://me:canary@127.0.0.1:{free_port()}",
        "IONOS_POLLER_API__MAX_RETRIES": "0",
    }
    line = failed(place.fetch("--since", "1h", env=env), 1, "proxy")
    assert "canary" not in line
    same(place.fetch("--since", "1h", env=env | {"NO_PROXY": "127.0.0.1"}).lines, place.oracle())


# The command line and the configuration


def test_a_bad_date_is_refused_before_anything_is_done(bench: Starter) -> None:
    place = bench()
    dates = ["yesterday", "2026-13-01", "2099-01-01", "", "-5m", "0001-01-01", "1969-12-31", "5000000d"]
    for text in dates:
        failed(place.fetch("--since", text), 2, "--since", "36h")
    assert place.requests("contracts") == 0


def test_unknown_keys_are_told_all_at_once_each_with_its_path(bench: Starter) -> None:
    place = bench()
    (place.directory / "ionos-poller.toml").write_text("[api]\npage_sise = 5\n[poll]\ncontracts = 'x y'\n[nope]\n")
    run = place.fetch(env={"IONOS_POLLER_API__NOPE": "1"})
    assert run.code == 2
    assert len(run.told) == 4
    told = "\n".join(run.told)
    for word in ("api.page_sise", "page_size", "poll.contracts", "nope", "IONOS_POLLER_API__NOPE"):
        assert word in told
    failed(place.run("--config", "missing.toml", "fetch"), 2, "missing.toml", "config example")


def test_a_contract_that_is_no_number_is_a_mistake_of_whoever_typed_it(bench: Starter) -> None:
    place = bench(events=1)
    failed(place.fetch("--contract", "31960001", "--contract", "mine"), 2, "--contract", "'mine'")
    assert place.requests("contracts") == 0


def test_a_contract_that_does_not_exist_is_named(bench: Starter) -> None:
    place = bench()
    run = place.fetch("--since", "1h", "--contract", "5", "--contract", str(FIRST))
    failed(run, 1, "contract 5", "check the number")
    same(run.lines, place.oracle(FIRST))


# The output


def test_a_full_disk_behind_stdout_is_told_and_nothing_is_lost(bench: Starter) -> None:
    place = bench()
    with Path("/dev/full").open("wb") as full:
        failed(place.fetch("--since", "1h", stdout=full), 1, "No space left on device", "next run")
    same(place.fetch().lines, place.oracle())
    with Path("/dev/full").open("wb") as full:
        run = place.fetch("--since", "2h", stderr=full)
    assert (run.code, run.lines) == (0, [])


def test_closed_streams_are_no_reason_to_crash(bench: Starter) -> None:
    place = bench()
    failed(place.fetch("--since", "1h", stdout=None, preexec_fn=lambda: os.close(1)), 1, "output")
    # With stderr closed there is no message, but the work is done.
    run = place.fetch("--since", "1h", stderr=None, preexec_fn=lambda: os.close(2))
    assert run.code == 0
    same(run.lines, place.oracle())
    alone = place.fetch("--nope", stderr=None, preexec_fn=lambda: os.close(2))
    assert alone.code == 2


# The state directory


def test_a_state_directory_that_cannot_be_is_told_with_its_path(bench: Starter) -> None:
    place = bench()
    (place.directory / "file").write_text("")
    paths = ("file", "file/below", "/proc/nowhere")
    for path in paths:
        failed(place.fetch("--state-dir", path), 4, path, "--state-dir")
    failed(place.fetch(env={"IONOS_POLLER_STATE_DIR": "file"}), 4, "file", "--state-dir")
    (place.state_dir / "fetch.db").mkdir(parents=True)
    failed(place.fetch(), 4, "fetch.db")


class Squeeze:
    """A state directory with little room: a small file system if we may mount one, otherwise a limit on file size."""

    def __init__(self, directory: Path, *, is_mount_wanted: bool) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(directory)]
        self.is_mounted = is_mount_wanted and _succeeds(command)

    @property
    def options(self) -> dict[str, Any]:
        if self.is_mounted:
            return {}
        size = 1_000_000
        return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}

    def relieve(self) -> None:
        if self.is_mounted:
            subprocess.run(["mount", "-o", "remount,size=100m", str(self.directory)], check=True)

    def end(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.directory)], check=True)


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(params=["file system", "file size"])
def squeeze(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Bench], Squeeze]]:
    made: list[Squeeze] = []

    def make(place: Bench) -> Squeeze:
        made.append(Squeeze(place.state_dir, is_mount_wanted=request.param == "file system"))
        return made[-1]

    yield make
    for one in made:
        one.end()


def test_a_full_disk_is_told_and_everything_comes_once_there_is_room(
    bench: Starter, squeeze: Callable[[Bench], Squeeze]
) -> None:
    place = bench(events=4000)
    small = squeeze(place)
    first = place.fetch("--since", "1h", **small.options)
    words = ("no space left on the disk", "free some") if small.is_mounted else ("disk I/O error", "quota")
    failed(first, 1, *words)
    again = place.fetch(**small.options)
    assert again.code == 1
    small.relieve()
    rest = place.fetch("--since", "1h")
    assert rest.code == 0
    printed = first.lines + again.lines + rest.lines
    # If a batch is printed but there is no room to settle it, it is repeated: one batch for each failure.
    assert len(printed) - len(set(printed)) <= 2 * 1000
    same(list(dict.fromkeys(printed)), place.oracle())
    assert not list(place.state_dir.glob("*unusable*"))


def test_a_disk_that_is_full_from_the_start_is_told(bench: Starter, squeeze: Callable[[Bench], Squeeze]) -> None:
    place = bench()
    small = squeeze(place)
    if small.is_mounted:
        with (place.state_dir / "ballast").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"x" * 4096)
                except OSError:
                    break
    else:
        small = Squeeze(place.directory, is_mount_wanted=False)
    run = place.fetch(
        "--since",
        "1h",
        **({} if small.is_mounted else {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))}),
    )
    failed(run, 1, "no space left" if small.is_mounted else "disk I/O error")
    if small.is_mounted:  # exit code 1: systemd restarts a backfill until there is room
        backfill = place.run("backfill", "--from", "1h", "--to", "1m", "--output", "out.ndjson")
        failed(backfill, 1, "no space left on the disk", "free some")
    (place.state_dir / "ballast").unlink(missing_ok=True)
    same(place.fetch("--since", "1h").lines, place.oracle())


# The state file


def random_bytes(path: Path) -> None:
    path.write_bytes(random.Random(3).randbytes(path.stat().st_size))


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 8192 * 4096)


def cut_to_a_few_bytes(path: Path) -> None:
    os.truncate(path, 100)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def overwritten_pages(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 512)


def someone_elses_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE precious (data)")
    connection.close()


def a_text_file(path: Path) -> None:
    path.write_text("not a database\n" * 1000)


DAMAGES = [
    random_bytes,
    cut_in_half,
    cut_to_a_few_bytes,
    cut_to_nothing,
    overwritten_pages,
    someone_elses_database,
    a_text_file,
]


def test_a_state_that_cannot_be_used_is_set_aside_and_the_way_out_works(bench: Starter) -> None:
    place = bench()
    same(place.fetch("--since", "1h").lines, place.oracle())

    def damaged(damage: Callable[[Path], None]) -> None:
        directory = place.directory / damage.__name__
        shutil.copytree(place.state_dir, directory)
        database = directory / "fetch.db"
        damage(database)
        content = database.read_bytes()
        options = ("--state-dir", str(directory))
        failed(place.fetch(*options), 4, "fetch.db", "set aside as fetch.db.unusable-", "--since")
        (aside,) = directory.glob("fetch.db.unusable-*")
        assert aside.read_bytes() == content, "set aside as it was"
        failed(place.fetch(*options), 4, aside.name, "--since", "delete")
        again = place.fetch("--since", "1h", *options)
        assert again.code == 0
        same(again.lines, place.oracle())
        assert aside.exists()

    for damage in DAMAGES:
        damaged(damage)


def test_a_state_written_by_a_newer_version_is_refused_and_left_alone(bench: Starter) -> None:
    place = bench()
    same(place.fetch("--since", "1h").lines, place.oracle())
    connection = sqlite3.connect(place.database)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    content = place.database.read_bytes()
    failed(place.fetch("--since", "1h"), 4, "newer", "999", "upgrade")
    for command in ("status", "sinks list", "dead-letters list"):
        run = place.run(*command.split())
        assert run.code == 4
        assert b"upgrade ionos-poller" in b"".join(run.lines) + run.stderr.encode(), command
    assert place.database.read_bytes() == content
    connection = sqlite3.connect(place.database)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    assert place.fetch("--since", "2h").lines == []


def test_deleting_the_state_begins_anew_also_when_side_files_stay(bench: Starter) -> None:
    place = bench()
    process = place.start("fetch", "--since", "1h", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    process.kill()
    process.communicate()
    place.database.unlink()
    same(place.fetch("--since", "1h").lines, place.oracle())


def test_a_damaged_entry_in_the_outbox_is_not_printed(bench: Starter) -> None:
    place = bench(contracts=1, events=50)
    with Path("/dev/full").open("wb") as full:
        assert place.fetch("--since", "1h", stdout=full).code == 1
    connection = sqlite3.connect(place.database)
    lines = connection.execute("SELECT lines FROM segments").fetchone()[0]
    connection.execute("UPDATE segments SET lines = ?", (lines.replace(b"Provision", b"Provisiom"),))
    connection.commit()
    connection.close()
    run = place.fetch()
    failed(run, 4, "damaged", "--since")
    assert run.lines == []
