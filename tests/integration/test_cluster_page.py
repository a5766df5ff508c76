"""docs/cluster.md from top to bottom: its commands, SQL and configuration, on a real PostgreSQL server.

`apt-get`, `sudo` and `systemctl` change a machine: the test checks the words of their lines, but does not run them.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from poller.simulator import Simulator, SimulatorSettings
from tests.commands import run_command, start_process
from tests.documents import Block, blocks
from tests.postgres import Server
from tests.support import COMMAND, TOP, clean_environment, wait_until

PAGE = TOP / "docs/cluster.md"
URL = re.compile(r"postgresql://ionos_poller@db\.example(?::5432)?/ionos_poller")
HARMLESS = (["apt-get", "install"], ["sudo", "-u", "postgres"], ["systemctl", "restart", "postgresql"])


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorSettings(contracts=4, events=50, span_seconds=200)) as running:
        yield running


class Reader:
    """Stands for a reader of the page, with a server and two machines that collect."""

    def __init__(self, directory: Path, server: Server, simulator: Simulator) -> None:
        self.directory, self.server, self.simulator = directory, server, simulator
        self.config = directory / "ionos-poller.toml"
        self.replicas: list[subprocess.Popen[bytes]] = []

    def filled(self, text: str, user: str = "ionos_poller") -> str:
        text = URL.sub(self.server.url("ionos_poller", user), text)
        return text.replace("/var/lib/ionos-poller", str(self.directory / "files"))

    def configure(self, block: Block) -> None:
        for name in ("db.password", "db.crt"):  # not used: the server is on this machine
            (self.directory / name).write_text("secret")
        sink = f'[[sinks]]\nname = "logging"\ntype = "logging-service"\nurl = "{self.simulator.url}/sink/logging"\ntag = "t"\n'
        text = self.filled(block.text, "collector").replace("/etc/ionos-poller/", f"{self.directory}/")
        key = f'api_key = "{self.simulator.settings.api_key}"\nbatch_age = "0s"\n'
        self.config.write_text(f'{text}lease = "4s"\n[poll]\ninterval = "1s"\n[http]\nlisten = ""\n{sink}{key}')

    def run(self, *args: str, **environment: str) -> str:
        done = self._run(*args, **environment)
        assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
        return done.stdout

    def _run(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_command(*args, cwd=self.directory, env=self._environment(environment))

    def start(self) -> None:
        with (self.directory / f"replica-{len(self.replicas)}").open("wb") as log:
            command = [*COMMAND, "--config", str(self.config), "run"]
            environment = self._environment({})
            self.replicas.append(start_process(command, cwd=self.directory, env=environment, stderr=log))

    def held(self) -> list[int]:
        """How many contracts each replica holds, from `status`."""
        done = self._run("--config", str(self.config), "status", "--json")
        assert done.returncode in (0, 4), done.stderr  # 4: no state exists yet
        status = json.loads(done.stdout) if done.returncode == 0 else {"replicas": []}
        return sorted(replica["contracts"] for replica in status["replicas"])

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        ours = {"IONOS_API_URL": self.simulator.url, "IONOS_API_TOKEN": self.simulator.token}
        return clean_environment({**ours, **more})


def test_the_page_leads_to_two_machines_that_share_the_work_and_back_to_files(
    tmp_path: Path, postgres_server: Server, simulator: Simulator
) -> None:
    server = postgres_server
    reader = Reader(tmp_path, server, simulator)
    page = blocks(PAGE)
    typed = [shlex.split(line) for block in page if block.language == "text" for line in block.text.splitlines()]
    ours = [words[1:] for words in typed if words[0] == "ionos-poller"]
    others = [words for words in typed if words[0] != "ionos-poller"]
    assert all(any(words[: len(known)] == known for known in HARMLESS) for words in others)
    assert ours[:2] == [["check"], ["run"]]
    copies = ours[2:]
    assert [words[:2] for words in copies] == [["state", "copy"]] * 2
    (toml,) = [block for block in page if block.language == "toml" and "[state]" in block.text]
    (sql,) = [block for block in page if block.language == "sql"]

    server.sql("CREATE ROLE ionos_poller LOGIN")
    server.sql("CREATE ROLE collector LOGIN")
    server.sql("CREATE DATABASE ionos_poller OWNER ionos_poller")
    reader.run("state", "init", IONOS_POLLER_STATE__URL=server.url("ionos_poller", "ionos_poller"))
    server.sql(sql.text, "ionos_poller")
    reader.configure(toml)
    try:
        reader.start()
        reader.start()
        wait_until(lambda: reader.held() == [2, 2], timeout=60, what="two replicas with half of the contracts each")
        reader.replicas[0].kill()
        reader.replicas[0].wait()
        wait_until(lambda: reader.held() == [4], timeout=60, what="the contracts of the one that was killed")
        entry = simulator.add_entries(simulator.contracts[0], count=1)
        assert entry
        wait_until(lambda: simulator.books("logging").lost == 0, timeout=60, what="all entries at the sink")
        reader.replicas[1].send_signal(signal.SIGTERM)
        assert reader.replicas[1].wait(15) == 0
    finally:
        for replica in reader.replicas:
            replica.kill()
            replica.wait()
    books = simulator.books("logging")
    assert (books.lost, books.invented) == (0, 0)
    to_files = [reader.filled(word) for word in copies[1]]
    reader.run("--config", str(reader.config), *to_files)
    assert reader.run("--state-dir", str(tmp_path / "files"), "status")
