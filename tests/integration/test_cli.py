"""The command line itself: help, version, global options, unknown words, and the commands that need no account."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poller import __version__
from poller.cli import _COMMANDS
from tests.commands import run_command
from tests.in_process import run_here
from tests.integration.fetching import FIRST, Starter, failed, finish, finished, same, unread_bytes
from tests.support import COMMAND, clean_environment, wait_until


def test_the_version_is_told(tmp_path: Path) -> None:
    done = run_command("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ionos-poller {__version__}\n", "")


def test_the_installed_command_is_the_same(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("ionos-poller")
    done = subprocess.run([script, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, f"ionos-poller {__version__}\n")


def test_garbage_is_collected_again_once_a_command_is_loaded(tmp_path: Path) -> None:
    """Garbage collection is off while the program starts. If it stayed off, memory would fill up."""
    told = "lambda code: (print(gc.isenabled(), flush=True), end(code))"
    script = f"import gc, os; end = os._exit; os._exit = {told}; from poller.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "config", "example"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "True"), done.stderr


def subcommands(text: str) -> list[str]:
    """The names in the list of commands of a help page."""
    return re.findall(r"^  ([a-z-]+)  ", text.partition("Commands:")[2], re.MULTILINE)


def test_every_command_explains_itself_with_an_example(tmp_path: Path) -> None:
    def explains(*command: str) -> None:
        code, stdout, stderr = run_here(*command, "--help", cwd=tmp_path, env={})
        assert (code, stderr) == (0, b""), command
        page = stdout.decode()
        assert re.search(r"Examples?:\n +(\S+=\S+ )*ionos-poller ", page), f"{command}: no example"
        assert max(map(len, page.splitlines())) <= 80, f"{command}: wider than a terminal"
        assert "...\n" not in page.partition("Commands:")[2], f"{command}: a line that is cut short"
        if not command:
            assert subcommands(page) == [*_COMMANDS]
        for name in subcommands(page):
            explains(*command, name)

    explains()
    assert not list(tmp_path.iterdir()), "asking for help leaves nothing behind"


def test_what_is_unknown_is_a_usage_error(tmp_path: Path) -> None:
    def is_refused(*args: str) -> None:
        run = finished(*run_here(*args, cwd=tmp_path, env={}))
        assert (run.code, run.lines) == (2, []), args
        assert "Error: " in run.stderr
        assert "--help" in run.stderr

    unknown = (("nope",), ("--nope",), ("fetch", "--nope"), ("fetch", "surplus"), ("fetch", "--max-line-bytes", "5"))
    for args in unknown:
        is_refused(*args)


def test_global_options_stand_before_or_behind_the_command(bench: Starter) -> None:
    place = bench(events=3)
    (place.directory / "my.toml").write_text("[poll]\ncontracts = [31960001]\n")
    options = ("--config", "my.toml", "--state-dir", "here", "--log-level", "debug", "--log-format", "text")
    for number, args in enumerate(((*options, "fetch", "--since", "1h"), ("fetch", "--since", "1h", *options))):
        run = place.run(*args)
        assert run.code == 0
        assert len(run.lines) == (3 if number == 0 else 0), "both use the same configuration and state"
        assert (place.directory / "here" / "fetch.db").exists()
        assert " DEBUG " in run.stderr
        assert "fetch.finished contracts=1" in run.stderr
    sinks = place.run("sinks", "--state-dir", "here", "list")
    assert (sinks.code, sinks.told, len(sinks.lines)) == (0, [], 2), "between the words of a command, too"
    quiet = place.run("--log-level", "debug", "fetch", "--log-level", "error", "--state-dir", "there")
    assert quiet.stderr == "", "the nearer one counts"
    assert place.run("--log-format", "json", "fetch").log[-1]["message"] == "fetch.finished"
    environment = {"IONOS_POLLER_LOG_LEVEL": "debug", "IONOS_POLLER_LOG_FORMAT": "text"}
    assert " DEBUG " in place.fetch(env=environment).stderr
    for args in (("--log-level", "error", "fetch"), ("fetch", "--log-level", "error")):
        assert place.run(*args, env=environment).stderr == "", "an option is stronger than the environment"
    for variable in environment:
        wrong = place.fetch(env={variable: "much"})
        assert (wrong.code, variable in wrong.stderr) == (2, True)


@pytest.mark.parametrize("command", ["run", "fetch"])
def test_nothing_is_read_from_the_future_on(bench: Starter, command: str) -> None:
    """A watermark in the future would look healthy, and nothing would be collected until then."""
    place = bench(events=3)
    failed(place.run(command, "--since", "2126-01-01"), 2, "--since", "lies in the future", "36h")
    assert not list(place.directory.glob("state/*.db"))


@pytest.mark.parametrize(
    "command",
    [
        ("fetch",),
        ("fetch", "--explain-filter"),
        ("tail",),
        ("backfill", "--from", "1h", "--output", "x"),
    ],
)
def test_a_contract_that_the_configuration_leaves_out_is_not_asked_for_in_vain(
    bench: Starter, command: tuple[str, ...]
) -> None:
    place = bench(events=3)
    environment = {"IONOS_POLLER_POLL__EXCLUDE_CONTRACTS": f"{FIRST}"}
    run = place.run(*command, "--contract", f"0{FIRST}", "--contract", str(FIRST + 1), env=environment)
    failed(run, 2, "--contract", f"{FIRST} is in poll.exclude_contracts", "take it out")
    assert not run.lines
    assert not place.state_dir.exists()


@pytest.mark.parametrize(
    ("start", "end", "count"),
    [("10:00:00Z", "11:00:00Z", 1), ("10:00:00.5Z", "11:00:00.1Z", 2), ("10:00:00.000001Z", "10:59:59.999Z", 1)],
)
def test_a_fraction_of_a_second_widens_a_range_to_the_whole_one(
    bench: Starter, start: str, end: str, count: int
) -> None:
    """The API takes whole seconds. The range is widened, because one entry too many is better than one too few."""
    place = bench(events=0, contracts=1)
    day = (datetime.now(UTC) - timedelta(days=2)).date().isoformat()
    for hour in (10, 11):
        place.simulator.add_entries(FIRST, count=1, at=datetime.fromisoformat(f"{day}T{hour}:00:00+00:00"))
    run = place.run("backfill", "--from", f"{day}T{start}", "--to", f"{day}T{end}", "--output", "-")
    assert (run.code, len(run.lines)) == (0, count)


def test_debugging_shows_every_request_and_no_secret(bench: Starter) -> None:
    place = bench(events=3, contracts=1)
    run = place.fetch("--since", "1h", "--log-level", "debug", "--log-format", "json")
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    asked = [(line["path"], line["code"]) for line in lines if line["message"] == "request.ended"]
    assert asked == [("/contracts", "200"), (f"/contracts/{FIRST}", "200")]
    assert place.simulator.token not in run.stderr


def test_a_state_of_fetch_alone_is_the_one_that_is_meant(bench: Starter) -> None:
    place = bench(events=3)
    for command in (("sinks", "list"), ("dead-letters", "list"), ("audit", "--from", "1h", "--to", "0m")):
        failed(place.run(*command), 4, "run.db does not exist", "`run` has not run")
    place.fetch("--since", "1h")
    heading, line = place.run("sinks", "list").lines
    assert heading.split() == [b"sink", b"type", b"delivered", b"waiting", b"dead", b"letters", b"state"]
    assert line.split() == [b"stdout", b"stdout", b"6", b"0", b"0", b"ok"]
    assert place.run("dead-letters", "list").told == ["no dead letters"]
    assert place.run("audit", "--from", "1h", "--to", "0m").code == 0


def test_a_state_directory_that_cannot_be_read_is_trouble_of_the_state(bench: Starter) -> None:
    place = bench(events=3)
    (place.directory / "file").write_text("no directory")
    period = ("--from", "1h", "--to", "0m")
    for command in (
        ("fetch",),
        ("status",),
        ("sinks", "list"),
        ("sinks", "forget", "loki"),
        ("dead-letters", "list"),
        ("audit", *period),
        ("backfill", *period, "--output", "-"),
    ):
        failed(place.run(*command, "--state-dir", "file"), 4, "file: cannot be ", "--state-dir")


def test_demo_shows_books_that_balance_in_less_than_twenty_seconds(tmp_path: Path) -> None:
    done = run_command("demo", cwd=tmp_path, timeout=20)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "lost 0   repeated 0" in done.stdout
    assert "received" in done.stdout
    assert not list(tmp_path.iterdir())


def test_simulate_serves_what_fetch_reads_until_it_is_stopped(bench: Starter) -> None:
    place = bench(events=0)
    process = place.start("simulate", "--port", "0", "--events", "50", "--span", "30m", "--fault", "500:10%")
    assert process.stdout is not None
    greeting = process.stdout.readline().decode()
    url, token = re.match(r"(http://\S+)  token: (\S+)", greeting).groups()
    lines = place.fetch("--since", "1h", env={"IONOS_API_URL": url, "IONOS_API_TOKEN": token}).lines
    assert len(lines) == len(set(lines)) == 100
    again = place.start("simulate", "--port", url.rpartition(":")[2])
    assert finish(again).code == 2, "the port is taken"
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 0
    for option, value in (("--fault", "nonsense"), ("--rate", "-1"), ("--rate", "1e9")):
        bad = place.run("simulate", "--port", "0", option, value)
        assert bad.code == 2, option
        assert value in bad.stderr or "not in the range" in bad.stderr


def test_simulate_writes_a_configuration_that_is_ready_to_run_and_overwrites_none(bench: Starter) -> None:
    place = bench(events=0)
    config = place.directory / "ionos-poller.toml"
    process = place.start("simulate", "--port", "0", "--write-config", config.name)
    assert process.stdout is not None
    url = process.stdout.readline().decode().split()[0]
    assert url in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o600
    # Not the default address: a daemon of another test may use it.
    env = {"IONOS_API_URL": "", "IONOS_API_TOKEN": "", "IONOS_POLLER_HTTP__LISTEN": "127.0.0.1:0"}
    checked = place.run("check", env=env)
    assert (checked.code, checked.lines[-1].split()[-2:]) == (0, [b"0", b"fail"])
    before = config.read_bytes()
    refused = place.run("simulate", "--port", "0", "--write-config", config.name)
    failed(refused, 2, "--write-config", "is there already")
    assert config.read_bytes() == before


def test_ctrl_c_stops_the_simulator_quietly(bench: Starter) -> None:
    place = bench(events=0)
    process = place.start("simulate", "--port", "0")
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    run = finish(process)
    assert (run.code, run.stderr) == (0, "")


def test_the_environment_alone_is_enough_and_stdout_carries_data_only(bench: Starter) -> None:
    place = bench()
    run = place.run("fetch", "--since", "1h", "--log-level", "debug")
    same(run.lines, place.oracle())
    assert run.rest == b""
    assert len(run.log) > 3


@pytest.mark.parametrize("command", [("config", "example"), ("--help",)])
def test_an_output_without_room_is_told_in_a_line(bench: Starter, command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        run = bench(events=0).run(*command, stdout=full)
    assert run.code == 1
    (line,) = run.told
    assert "No space left" in line


@pytest.mark.parametrize(
    "command",
    [
        ("--help",),
        ("--version",),
        ("config", "show"),
        ("check", "--offline", "--json"),
        ("check", "--offline"),
        ("status",),
        ("status", "--json"),
        ("sinks", "list"),
        ("gaps", "list", "--json"),
        ("tail", "--once", "--since", "1h"),
        ("fetch", "--explain-filter", "--since", "1h"),
        ("backfill", "--from", "1h", "--output", "-"),
        ("simulate", "--port", "0"),
        ("demo",),
    ],
    ids=" ".join,
)
def test_a_closed_output_is_told_in_a_line_by_every_command_that_prints(
    bench: Starter, command: tuple[str, ...]
) -> None:
    place = bench(events=20)
    assert place.fetch().code == 0
    run = place.run(*command, stdout=None, preexec_fn=lambda: os.close(1))
    assert run.code == 1
    assert "stdout is closed" in run.told[-1]


@pytest.mark.parametrize("command", ["fetch", "status", "check", "gaps list", "backfill --from 1h --output hour"])
def test_a_current_directory_that_was_deleted_is_told(tmp_path: Path, command: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD" && exec "$@"'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *COMMAND, *command.split()],
        cwd=gone,
        env=clean_environment({"IONOS_API_TOKEN": "t", "IONOS_API_URL": "http://127.0.0.1:1"}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "the current directory does not exist any more" in done.stderr


BUFFERING = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
LARGEST_FILE_BYTES = 8192


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE_BYTES, LARGEST_FILE_BYTES))


@BUFFERING
def test_what_a_file_cannot_take_fails_the_command_that_prints_it(tmp_path: Path, unbuffered: str) -> None:
    """With PYTHONUNBUFFERED, Python silently drops the rest of such a write."""
    before = b'{"of":"an earlier day"}\n'
    path = tmp_path / "out"
    path.write_bytes(before)
    with path.open("ab") as file:
        done = subprocess.run(
            [*COMMAND, "config", "schema"],
            cwd=tmp_path,
            # The limit would also cut off Python's compiled files, which Python does not notice.
            env=clean_environment({"PYTHONUNBUFFERED": unbuffered, "PYTHONDONTWRITEBYTECODE": "1"}),
            stdout=file,
            stderr=subprocess.PIPE,
            preexec_fn=limit_files,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert b"output cannot be written: File too large" in done.stderr
    _, schema, _ = run_here("config", "schema", cwd=tmp_path, env={})
    kept = path.read_bytes().removeprefix(before)
    assert kept.endswith(b"\n"), "half a line"
    assert len(kept) > LARGEST_FILE_BYTES - 500
    assert schema.startswith(kept)


@BUFFERING
def test_a_pipe_that_is_not_to_block_gets_all_that_a_command_prints(tmp_path: Path, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    env = clean_environment({"PYTHONUNBUFFERED": unbuffered})
    with subprocess.Popen(
        [*COMMAND, "config", "schema"], cwd=tmp_path, env=env, stdout=writer, stderr=subprocess.PIPE
    ) as process:
        os.close(writer)
        wait_until(lambda: unread_bytes(reader) == 4096, what="the pipe is full")
        with os.fdopen(reader, "rb") as pipe:
            printed = pipe.read()
        assert (process.wait(30), process.communicate()[1]) == (0, b"")
    assert printed == run_here("config", "schema", cwd=tmp_path, env={})[1]


def test_a_closed_output_is_no_matter_to_a_command_that_prints_nothing(bench: Starter) -> None:
    place = bench(events=20)
    assert place.fetch().code == 0
    run = place.run("gaps", "list", stdout=None, preexec_fn=lambda: os.close(1))
    assert (run.code, run.told) == (0, ["no gaps: nothing is unreadable"])
    export = ("backfill", "--from", "1h", "--output", "hour.ndjson")
    assert place.run(*export, stdout=None, preexec_fn=lambda: os.close(1)).code == 0


@pytest.mark.parametrize("target", ["state", "./state/", "other/../state", "link"])
def test_a_state_is_not_copied_onto_itself(bench: Starter, target: str) -> None:
    place = bench(events=20)
    assert place.fetch().code == 0
    (place.directory / "other").mkdir()
    (place.directory / "link").symlink_to("state")
    failed(place.run("state", "copy", "--from", "state", "--to", target), 2, "--to", "--from")
    assert place.fetch().code == 0


def test_without_a_state_there_is_no_status(bench: Starter) -> None:
    run = bench(events=0).run("status")
    assert run.code == 4
    assert "no state in" in run.stderr
