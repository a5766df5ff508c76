"""After a person fixed a problem: the command that `status` suggests retries at once."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from tests.daemon import LOGGING, LOKI, Daemon, MakeDaemon
from tests.postgres import Server
from tests.support import clean_environment, wait_until


def test_a_sink_whose_key_was_replaced_works_at_once_when_asked_to(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=50)
    good = daemon.key_file.read_text()
    daemon.key_file.write_text("wrong")
    daemon.start()
    wait_until(lambda: daemon.sink(LOGGING)["parked_at"], what="it is parked")
    told = daemon.command("status")
    assert "next try in " in told
    assert f"now: `ionos-poller sinks retry {LOGGING}`" in told
    assert f"replace {daemon.key_file}: it is read again each time" in told
    assert "it failed again" in daemon.command("sinks", "retry", LOGGING, code=1)
    daemon.key_file.write_text(good)
    told = daemon.command("sinks", "retry", LOGGING)
    assert "works again" in told
    assert "50" in told
    assert "does not wait for anything" in daemon.command("sinks", "retry", LOKI)
    assert "it knows: logging, loki" in daemon.command("sinks", "retry", "no-such", code=2)
    assert "sinks retry  logging" in daemon.command("journal")
    daemon.key_file.write_text("wrong")
    daemon.simulator.add_entries(daemon.simulator.contracts[0], count=1)
    wait_until(lambda: daemon.sink(LOGGING)["parked_at"], what="it is parked again")
    daemon.stop()
    assert "as soon as `run` runs" in daemon.command("sinks", "retry", LOGGING)
    assert "next try when `run` runs" in daemon.command("status")


def test_a_sink_that_left_the_configuration_parked_is_no_trouble_and_cannot_be_tried(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=50)
    good = daemon.key_file.read_text()
    daemon.key_file.write_text("wrong")
    daemon.start()
    wait_until(lambda: daemon.get("/readyz")[0] == 503 and "parked" in daemon.get("/readyz")[1], what="it is told")
    daemon.configure(sinks={LOKI: {}})
    assert daemon.command("reload") == "reloaded\n"
    wait_until(lambda: daemon.get("/readyz")[0] == 200, what="all that is configured works")
    assert 'ionos_poller_sink_parked{sink="logging"}' not in daemon.get("/metrics")[1]
    told = daemon.command("sinks", "retry", LOGGING, code=2)
    assert f"{LOGGING} left the config, so nothing is sent to it" in told
    assert f"sinks forget {LOGGING}" in told
    daemon.key_file.write_text(good)
    daemon.configure()
    assert daemon.command("reload") == "reloaded\n"
    daemon.await_delivery(LOGGING)
    daemon.stop()


def test_a_reload_tells_what_came_of_it(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=5)
    assert "`run` is not running" in daemon.command("reload", code=4)
    daemon.start()
    assert daemon.command("reload") == "reloaded\n"
    told = daemon.command("reload", "--state-dir", "elsewhere", code=4)
    assert "is not running with the state in" in told
    assert "elsewhere" in told
    assert daemon.command("reload", str(daemon.process.pid if daemon.process else 0)) == "reloaded\n"
    daemon.configure(host="192.0.2.1")
    told = daemon.command("reload", code=1)
    assert "the old configuration stays in force: http.listen: 192.0.2.1" in told
    daemon.configure(poll={"interval": '"60"'})
    assert "poll.interval: '60' is not a duration" in daemon.command("reload", code=2)
    assert daemon.logged("config.reloaded")
    daemon.configure()
    assert daemon.command("reload") == "reloaded\n"
    daemon.stop()


def test_a_command_that_uses_the_state_is_not_ended_by_a_reload(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=5)
    daemon.start()
    wait_until(lambda: daemon.command("status"), what="there is a state")
    daemon.stop()
    holding = "import sys, time; from pathlib import Path; from poller.store.sqlite import State"
    code = f"{holding}; State.open(Path(sys.argv[1]), 'run'); print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(daemon.state_dir)]
    env = clean_environment()
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, encoding="utf-8") as other:
        try:
            assert other.stdout
            assert other.stdout.readline() == "held\n"
            assert f"process {other.pid} uses the state" in daemon.command("reload", code=4)
            assert other.poll() is None
        finally:
            other.kill()


def test_of_several_replicas_on_this_machine_the_one_that_is_named_reloads(
    daemon_of: MakeDaemon, postgres_server: Server, tmp_path: Path
) -> None:
    postgres_server.sql("CREATE DATABASE several")
    one = daemon_of(contracts=1, events=5)
    (tmp_path / "other").mkdir()

    def pids() -> set[int]:
        return {replica["pid"] for replica in json.loads(one.command("status", "--json"))["replicas"]}

    with closing(Daemon(tmp_path / "other", one.simulator)) as other:
        for daemon in (one, other):
            daemon.configure(more=f'[state]\nurl = "{postgres_server.url("several")}"\n')
        one.start()
        wait_until(lambda: len(pids()) == 1, what="it has joined")
        assert one.command("reload") == "reloaded\n", "it is alone"
        other.start()
        wait_until(lambda: len(pids()) == 2, what="both have joined")
        told = other.command("reload", code=2)
        assert all(str(pid) in told for pid in pids())
        assert "name one of them" in told
        assert not other.logged("config.reloaded")
        assert other.process
        assert other.command("reload", str(other.process.pid)) == "reloaded\n"
        wait_until(lambda: other.logged("config.reloaded"), what="it logs what it has told")
        assert (len(one.logged("config.reloaded")), len(other.logged("config.reloaded"))) == (1, 1)
        one.stop()
        assert other.command("reload") == "reloaded\n", "it is alone again"
        other.stop()
