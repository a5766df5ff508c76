"""`check`: common mistakes, each made on its own, and the messages; a faultless configuration; and the output for machines."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from poller.store.sqlite import State
from poller.store.sqlite.inspection import holder_of
from tests.certificates import make_certificate, serving
from tests.daemon import MakeDaemon
from tests.hostile import RawServer, http
from tests.integration.fetching import FIRST, SECOND, Bench, Run, Starter, finish
from tests.support import COMMAND, TOP, free_port, wait_until
from tests.terminal import COLOUR, COLUMNS, on_terminal

Environment = dict[str, str]

LOGGING = """
[[sinks]]
name = "logging"
type = "logging-service"
url = "{url}/sink/logging"
tag = "activityLog"
api_key_file = "logging.key"
"""
FLUENT_BIT = ("check", "--fluent-bit", "fluent-bit.conf")


def configure(place: Bench, text: str = "", sinks: str = LOGGING) -> Path:
    """Write a configuration without mistakes, except those in `text`."""
    path = place.directory / "ionos-poller.toml"
    head = "" if "[http]" in text else '[http]\nlisten = ""\n'
    path.write_text(head + text + sinks.format(url=place.simulator.url))
    (place.directory / "logging.key").write_text(place.simulator.settings.api_key)
    return path


def jwt(expires_in: timedelta) -> str:
    payload = json.dumps({"exp": time.time() + expires_in.total_seconds()}).encode()
    return f"eyJh.{base64.urlsafe_b64encode(payload).decode().rstrip('=')}.sig"


def patched(place: Bench, module: str, code: str) -> Environment:
    """An environment in which `code` replaces a module."""
    directory = place.directory / "patched"
    directory.mkdir()
    (directory / f"{module}.py").write_text(code)
    return {"PYTHONPATH": f"{directory}{os.pathsep}{TOP}"}


@contextmanager
def https(directory: Path) -> Iterator[str]:
    """A server with a self-signed certificate.  Yields: its address."""
    pem = make_certificate(directory).rename(directory / "server.pem")
    with closing(RawServer(lambda asked: http(status="201 Created"), tls=serving(pem))) as server:
        yield server.url


# The mistakes. Each function makes one, and may return an environment for the command. The bench ends what it starts.


def missing_token(place: Bench) -> Environment:
    return {"IONOS_API_TOKEN": ""}


def expired_token(place: Bench) -> Environment:
    return {"IONOS_API_TOKEN": jwt(-timedelta(days=3))}


def token_that_expires_soon(place: Bench) -> Environment:
    token = jwt(timedelta(days=5, hours=1))
    place.simulator.change_settings(token=token)
    return {"IONOS_API_TOKEN": token}


def no_privilege(place: Bench) -> None:
    place.simulator.change_settings(forbidden=place.simulator.contracts)


def wrong_url(place: Bench) -> Environment:
    return {"IONOS_API_URL": f"{place.simulator.url}/nowhere"}


def unknown_host(place: Bench) -> Environment:
    return {"IONOS_API_URL": "https://nowhere.invalid"}


PLAIN = {"IONOS_POLLER_API__ALLOW_PLAIN_HTTP": "true"}


def proxy_that_is_down(place: Bench) -> Environment:
    return {
        "HTTP_PROXY": f"http://127.0.0.1:{free_port()}",
        "NO_PROXY": "",
        "IONOS_API_URL": "http://api.example",
        **PLAIN,
    }


def tls_of_an_unknown_ca(place: Bench) -> None:
    url = place.until_closed(https(place.directory))
    configure(place, sinks=LOGGING.replace("{url}", url))


def wrong_api_key(place: Bench) -> None:
    place.simulator.change_settings(api_key="another")


def wrong_tag(place: Bench) -> None:
    place.simulator.change_settings(logging_tag="anotherTag")


def fluent_bit(place: Bench) -> str:
    (place.directory / "parsers.conf").write_text((TOP / "fluent-bit" / "parsers.conf").read_text())
    program = place.directory / "ionos-poller"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    text = (TOP / "fluent-bit" / "logging-service.conf").read_text()
    return text.replace("Command           ionos-poller", f"Command           {program}")


def buffer_of_4k(place: Bench) -> None:
    text = fluent_bit(place).replace("Buf_Size          2M", "Buf_Size          4k")
    (place.directory / "fluent-bit.conf").write_text(text)


def unwritable_state(place: Bench) -> None:
    place.state_dir.write_text("a file, where a directory should be")


def corrupt_state(place: Bench) -> None:
    State.open(place.state_dir, "fetch").close()
    place.database.write_bytes(b"nonsense " * 1000)


def clock_two_hours_off(place: Bench) -> None:
    place.simulator.change_settings(date_skew_seconds=-7200)


def page_that_is_too_large(place: Bench) -> None:
    place.simulator.set_faults(["limit:count=100"])


def list_that_is_refused(place: Bench) -> Environment:
    place.simulator.set_faults(["unlisted"])
    return {"IONOS_POLLER_POLL__CONTRACTS": str(FIRST)}


def answers_without_a_date(place: Bench) -> None:
    place.simulator.set_faults(["undated"])


def disk_nearly_full(place: Bench) -> Environment:
    code = "import shutil\nshutil.disk_usage = lambda path: shutil._ntuple_diskusage(2**40, 2**40 - 2**23, 2**23)\n"
    return patched(place, "sitecustomize", code)


def outbox_larger_than_the_disk(place: Bench) -> None:
    configure(place, '[outbox]\nmax_bytes = "1048576GiB"\n')


def port_taken(place: Bench) -> None:
    configure(place, f'[http]\nlisten = "{place.simulator.url.removeprefix("http://")}"\n')


def unknown_key(place: Bench) -> None:
    configure(place, '[poll]\nintervall = "60s"\n')


def bad_duration(place: Bench) -> None:
    configure(place, '[poll]\ninterval = "1 minute"\n')


def sink_down(place: Bench) -> None:
    configure(place, sinks=LOGGING.replace("{url}", f"http://127.0.0.1:{free_port()}"))


def database_down(place: Bench) -> Environment:
    return {"IONOS_POLLER_STATE__URL": f"postgresql://poller@127.0.0.1:{free_port()}/poller"}


def second_instance(place: Bench) -> None:
    first = place.start("run", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: holder_of(place.state_dir / "run.lock") == first.pid, what="the first instance runs")


def bad_glob(place: Bench) -> None:
    configure(place, '[filter]\nexclude = [{ type = "Request[" }]\n')


def missing_extra(place: Bench) -> Environment:
    configure(place, sinks='[[sinks]]\nname = "aws"\ntype = "firehose"\nstream = "activity"\n')
    return patched(place, "boto3", "raise ImportError('no boto3 here')\n")


def unreadable_key_file(place: Bench) -> None:
    (place.directory / "logging.key").unlink()
    (place.directory / "logging.key").mkdir()  # nobody can read it as a file, not even root


class Told(NamedTuple):
    """The expected message about a mistake: the exit code, the name of its line, words of the cause and of the remedy.

    If another command reports it, the name is the program's.
    """

    code: int
    name: str
    cause: str
    remedy: str
    command: tuple[str, ...] = ("check",)


MISTAKES: dict[Callable[[Bench], Environment | None], Told] = {
    missing_token: Told(2, "token", "no IONOS API token", "set IONOS_API_TOKEN"),
    expired_token: Told(3, "token", "the token expired on", "make a new one in the DCD"),
    token_that_expires_soon: Told(0, "token", "expires on", "make a new one in the DCD"),
    no_privilege: Told(3, "contract 31960001", "denied access", "ACCESS_ACTIVITY_LOG"),
    wrong_url: Told(1, "api", "/nowhere: the API refused the request (404)", "check api.url"),
    tls_of_an_unknown_ca: Told(1, "sink logging", "self-signed certificate", "name its file in ca_file"),
    unknown_host: Told(1, "api", "is not known", "check the url and the DNS"),
    proxy_that_is_down: Told(1, "api", "the proxy did not let the request through", "check HTTPS_PROXY or HTTP_PROXY"),
    wrong_api_key: Told(3, "sink logging", "the credentials are refused: HTTP 401", "--rotate-key"),
    wrong_tag: Told(1, "sink logging", "nothing takes events there", "check url and tag"),
    buffer_of_4k: Told(2, "fluent-bit", "Buf_Size 4k loses every longer entry", "set Buf_Size 2M", FLUENT_BIT),
    unwritable_state: Told(4, "state", "cannot be written: it is no directory", "another --state-dir"),
    corrupt_state: Told(4, "state fetch", "is damaged", "--since T"),
    clock_two_hours_off: Told(1, "clock", "2.0 h ahead of the API's", "timedatectl"),
    page_that_is_too_large: Told(0, "page_size", "limit must not exceed 100", "set api.page_size to "),
    list_that_is_refused: Told(0, "contracts", "the list of contracts cannot be read", "still polled"),
    answers_without_a_date: Told(0, "clock", "do not say what time it is", "timedatectl set-ntp true"),
    disk_nearly_full: Told(4, "disk", "8.0 MiB free: nearly full", "free some space"),
    outbox_larger_than_the_disk: Told(0, "disk", "less than outbox.max_bytes", "lower outbox.max_bytes"),
    port_taken: Told(2, "http.listen", "taken by another program", "choose another http.listen"),
    unknown_key: Told(2, "config", "poll.intervall: unknown key", "interval"),
    bad_duration: Told(2, "config", "poll.interval: '1 minute' is not a duration", "10s, 5m, 1h30m"),
    sink_down: Told(1, "sink logging", "connection refused", "a server listens there"),
    database_down: Told(4, "state", "cannot be reached: Connection refused", "check that it runs, "),
    second_instance: Told(4, "ionos-poller:", "another process holds this state", "stop one of the two", ("run",)),
    bad_glob: Told(2, "config", "has a `[` without its `]`", "patterns know"),
    missing_extra: Told(2, "sink aws", "needs boto3, which is not installed", "pip install 'ionos-poller[firehose]'"),
    unreadable_key_file: Told(2, "config", "unreadable key file", "this user can read it"),
}


def troubles(run: Run) -> list[str]:
    """The lines of `check` that are not ok."""
    return [line.decode() for line in run.lines if line.startswith((b"fail", b"warn"))]


@pytest.mark.parametrize(("plant", "told"), MISTAKES.items(), ids=[mistake.__name__ for mistake in MISTAKES])
def test_of_every_mistake_cause_and_remedy_are_told_in_one_line(
    bench: Starter, plant: Callable[[Bench], Environment | None], told: Told
) -> None:
    place = bench(contracts=1, events=5)
    configure(place)
    run = place.run(*told.command, env=plant(place))
    said = [line[6:] for line in troubles(run)] + run.told
    lines = [line for line in said if line.startswith(told.name)]
    assert lines, (run.lines, run.stderr)
    assert told.cause in lines[0], lines
    assert told.remedy in lines[0], lines
    assert len(said) <= 2, "nothing else is blamed, but that the rest could not be checked"
    assert run.code == told.code
    assert bool(run.told) == ("check" not in told.command)


def test_a_configuration_that_leaves_nothing_to_collect_is_told(bench: Starter) -> None:
    place = bench(contracts=2, events=5)
    configure(place)
    env = {"IONOS_POLLER_POLL__EXCLUDE_CONTRACTS": f"{FIRST},{SECOND}"}
    run = place.run("check", env=env)
    (line,) = troubles(run)
    assert "poll.exclude_contracts leaves out all that the token sees" in line
    assert run.code == 0


def test_the_page_on_troubleshooting_knows_every_mistake() -> None:
    page = (TOP / "docs" / "troubleshooting.md").read_text()
    for mistake, told in MISTAKES.items():
        assert told.remedy in page, mistake.__name__


def test_a_certificate_of_an_unknown_ca_is_told_until_its_file_is_named(bench: Starter) -> None:
    place = bench(contracts=1, events=5)
    with https(place.directory) as url:
        configure(place, sinks=LOGGING.replace("{url}", url))
        run = place.run("check")
        assert run.code == 1
        (line,) = troubles(run)
        assert "self-signed certificate" in line
        assert "name its file in ca_file" in line
        api = place.run("check", "--no-send", env={"IONOS_API_URL": url})
        assert "TLS failed" in troubles(api)[0]
        configure(place, sinks=LOGGING.replace("{url}", url) + 'ca_file = "server.pem"\n')
        assert place.run("check").code == 0


def test_a_second_instance_is_told_who_holds_the_state_and_check_runs_beside_it(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=5)
    daemon.start()
    assert daemon.process is not None
    told = daemon.command("run", code=4)
    assert f"another process holds this state (process {daemon.process.pid})" in told
    lines = daemon.command("check").splitlines()
    assert all(line.startswith("ok") for line in lines[:-1]), lines
    assert any("run.db" in line and f"in use by process {daemon.process.pid}" in line for line in lines)
    assert any("http.listen" in line and "in use by the daemon" in line for line in lines)
    daemon.stop()


def test_all_problems_of_a_configuration_are_told_at_once_and_the_rest_is_tried_where_it_can_be(bench: Starter) -> None:
    place = bench(contracts=1, events=5)
    configure(place, '[poll]\nintervall = "1s"\noverlap = "much"\n[outbox]\nmax_bytes = "1 apple"\n')
    run = place.run("check")
    assert [words in "\n".join(troubles(run)) for words in ("intervall", "poll.overlap", "outbox.max_bytes")] == [
        True
    ] * 3
    assert "the rest was not checked" in troubles(run)[-1]
    # If one key file is missing, the other sinks are still tried.
    configure(place, sinks=LOGGING + LOGGING.replace('"logging"', '"two"').replace("logging.key", "none.key"))
    run = place.run("check")
    assert (run.code, len(troubles(run))) == (2, 1)
    assert any(line.startswith(b"ok    sink logging") for line in run.lines)


def test_when_all_is_well_it_says_how_well(bench: Starter) -> None:
    place = bench(events=30, span_seconds=60)
    configure(place)
    before = sorted(place.directory.rglob("*"))
    run = place.run("check")
    text = b"\n".join(run.lines).decode()
    assert run.code == 0
    assert run.stderr == ""
    assert troubles(run) == []
    for words in ("1 sink", "answers within", "agrees with", "accepted", "contract 31960002", "writable", "free"):
        assert words in text
    assert text.endswith("0 warn, 0 fail")
    assert "\x1b" not in text, "colours are for terminals"
    assert sorted(place.directory.rglob("*")) == before, "it leaves nothing behind"
    assert place.simulator.intakes["logging"].accepted == 0


def test_machines_get_one_object(bench: Starter) -> None:
    place = bench(contracts=1, events=5)
    configure(place)
    place.simulator.change_settings(api_key="another")
    run = place.run("check", "--json")
    answer = json.loads(run.lines[0])
    assert (len(run.lines), run.code, answer["exit_code"], answer["level"]) == (1, 3, 3, "fail")
    (failure,) = [finding for finding in answer["findings"] if finding["level"] == "fail"]
    assert failure["name"] == "sink logging"
    assert failure["hint"]


def test_offline_and_no_send_leave_others_alone(bench: Starter) -> None:
    place = bench(contracts=1, events=5)
    configure(place, sinks=LOGGING + '[[sinks]]\nname = "archive"\ntype = "file"\npath = "a/{{date}}"\n')
    run = place.run("check", "--offline")
    assert run.code == 0
    assert any(b"sink archive" in line for line in run.lines)
    assert not any(b"sink logging" in line for line in run.lines)
    assert place.simulator.traffic.counts == {}
    assert place.run("check", "--no-send").code == 0
    assert place.simulator.sink_traffic["logging"].counts == {}


def test_several_accounts_are_checked_each_by_name(bench: Starter) -> None:
    place = bench(contracts=1, events=5)
    (place.directory / "a.token").write_text(place.simulator.token)
    (place.directory / "b.token").write_text("wrong")
    accounts = "".join(f'[[accounts]]\nname = "{name}"\ntoken_file = "{name}.token"\n' for name in "ab")
    configure(place, '[poll]\ncontracts = [31960001]\n[http]\nlisten = ""\n' + accounts)
    run = place.run("check")
    (line,) = troubles(run)
    assert run.code == 3
    assert line.startswith("fail  token b ")
    assert "b.token" in line
    (place.directory / "b.token").write_text(place.simulator.token)
    configure(place, '[poll]\ncontracts = [31960001, 4711]\n[http]\nlisten = ""\n' + accounts)
    run = place.run("check")
    assert run.code == 2
    assert "no token sees it" in troubles(run)[0]


def test_a_contract_list_is_long_for_a_reseller(bench: Starter) -> None:
    place = bench(contracts=40, events=1)
    configure(place)
    run = place.run("check")
    assert run.code == 0
    assert any(b"and 15 more" in line for line in run.lines)


def test_it_can_be_stopped(bench: Starter) -> None:
    import signal

    place = bench(contracts=1, events=1)
    configure(place)
    place.simulator.set_faults(["hang:60s"])
    process = place.start("check")
    wait_until(lambda: place.requests("contracts") or place.simulator.traffic.max_per_second, what="it asks")
    process.send_signal(signal.SIGTERM)
    assert finish(process, 10).code == 130
    # Sinks are asked from another thread.
    place.simulator.set_faults(["sink=logging:hang:60s"])
    process = place.start("check")
    wait_until(lambda: place.simulator.sink_traffic["logging"].max_per_second, what="it asks the sink")
    process.send_signal(signal.SIGINT)
    assert finish(process, 10).code == 130


def test_a_terminal_gets_colours_and_columns(bench: Starter) -> None:
    place = bench(contracts=1, events=1)
    configure(place)
    place.simulator.set_faults(["sink=logging:401"])
    terminal = on_terminal([*COMMAND, "check"], place.directory, place.environment())
    assert COLOUR.search(terminal.raw)
    lines = terminal.shown.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("fail"))
    margin = lines[first].index("http")
    told, more, *_ = lines[first:]
    assert max(len(told), len(more)) <= COLUMNS
    assert len(more) - len(more.lstrip()) == margin, "the columns before the text stay free"
