"""Every block of the documentation is tried: commands are run, files are loaded by the program that reads them.

Each page is tried from top to bottom in a directory of its own, in which $ROOT stands for /. A simulator is the API and the
receivers. An unknown command, language or placeholder fails the test of the page.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from poller.archive.signing import new_key
from poller.config import Config, load
from poller.simulator import Simulator, SimulatorSettings
from tests.archives import blocks_of_evidence as archive_blocks
from tests.documents import PAGES, Block, blocks, commands, differences, name_of
from tests.fluent_bit import classic_sections
from tests.reader import Reader, path_of
from tests.stand_ins import PROGRAMS, write_script
from tests.support import TOP, clean_environment

# Programs that really run: in the page's directory they do no harm.
HARMLESS = ["cat", "env", "head", "install", "ln", "mkdir", "openssl", "sed"]
PLACES = re.compile(r"(?<![\w./>-])/(etc|opt|path|srv|tmp|usr/local|var/lib|var/log)\b")
SECRETS = {
    "db.password": "secret",
    "db.crt": "demo",
    "token": "{token}",
    "logging.key": "{api_key}",
    "moesif.id": "demo-app",
    "grafana.token": "glc_demo",
    "search.password": "demo",
    "elastic.key": "ZGVtbzprZXk=",
    "kafka.password": "demo",
    "kafka.ca.pem": "demo",
    "kafka.cert.pem": "demo",
    "kafka.key.pem": "demo",
    "hash.key": "0123456789abcdef" * 4,
    "s3.access": "AKIAIOSFODNN7EXAMPLE",
    "s3.secret": "secret",
}
# Files that a page expects its reader to have.
GIVEN = {"systemd/README.md": ("token", "logging.key")}
UNIT_KEYS = {"EnvironmentFile", "ExecStart", "LoadCredential", "LogsDirectory", "LogsDirectoryMode"}


class Place:
    """The place in which a page is tried: a directory with all that the page expects, and a simulator."""

    def __init__(self, directory: Path, simulator: Simulator) -> None:
        self.directory, self.simulator = directory, simulator
        self.root = directory / "root"
        self.config: dict[str, Any] = {}
        for name in ("etc/ionos-poller", "etc/systemd/system", "usr/local/bin", "var/lib/ionos-poller", "run", "tmp"):
            (self.root / name).mkdir(parents=True)
        for name in ("fluent-bit", "systemd"):
            shutil.copytree(TOP / name, directory / name)
        for name, text in SECRETS.items():
            path = self.root / "etc/ionos-poller" / name
            path.write_text(text.format(token=simulator.token, api_key=simulator.settings.api_key))
            path.chmod(0o600)
        evidence = self.root / "etc/ionos-poller/evidence.key"
        evidence.write_bytes(new_key()[0])
        evidence.chmod(0o600)
        environment = clean_environment(
            {
                "PATH": path_of(self._programs(), self.root / "usr/local/bin"),
                "PROGRAM": str(Path(sys.executable).with_name("ionos-poller")),
                "PYTHON": sys.executable,
                "ROOT": str(self.root),
                "IONOS_API_URL": simulator.url,
                "IONOS_API_TOKEN": simulator.token,
                "IONOS_LOGGING_API_URL": simulator.url,
            }
        )
        self.reader = Reader(directory, environment, self.filled_in)

    def _programs(self) -> Path:
        """A directory with all allowed programs, and nothing else."""
        directory = self.directory / "bin"
        directory.mkdir()
        for name in PROGRAMS:
            write_script(directory / name, f'exec "$PYTHON" -m tests.stand_ins {name} "$@"')
        for name in HARMLESS:
            (directory / name).symlink_to(shutil.which(name) or "/missing")
        (directory / "ionos-poller").symlink_to(Path(sys.executable).with_name("ionos-poller"))
        return directory

    def filled_in(self, text: str) -> str:
        """The text as a reader would type it: with token, address of the pipeline, and $ROOT before paths of the machine."""
        text = text.replace("https://<httpAddress of your pipeline>", f"{self.simulator.url}/sink/logging")
        text = text.replace("IONOS_API_TOKEN=...", f"IONOS_API_TOKEN={self.simulator.token}")
        assert not re.search(r"<[a-zA-Z ]+>|\.\.\.", text), f"a placeholder that nobody fills in: {text}"
        return PLACES.sub(rf"{self.root}/\1", text)

    def take_toml(self, text: str) -> Config:
        """Load a block: a whole file if its first line names one, otherwise an addition to the page's configuration."""
        text = self.filled_in(text)
        if match := re.match(r"# (\S+\.toml)\b", text):
            path = self.directory / match[1]
            path.write_text(text)
            credentials = self.root / "etc/ionos-poller"
            if path.name == "config.toml":  # the page uses it there, or installs it there
                self.reader.environment["IONOS_POLLER_CONFIG"] = str(credentials / "config.toml")
            return load(path, {**self.reader.environment, "CREDENTIALS_DIRECTORY": str(credentials)})
        self._merge(tomllib.loads(text))
        path = self.directory / "ionos-poller.toml"
        path.write_text(toml(self.config))
        return load(path, self.reader.environment)

    def _merge(self, found: dict[str, Any]) -> None:
        top_level = {field.encode_name for field in msgspec.structs.fields(Config)}
        if not set(found) <= top_level:  # keys of the last sink
            self.config["sinks"][-1] |= found
            return
        for sink in found.pop("sinks", []):
            others = [other for other in self.config.get("sinks", []) if other["name"] != sink["name"]]
            self.config["sinks"] = [*others, sink]
        self.config |= found

    def begin_anew(self) -> None:
        """The page shows another way to begin: stop all processes, and delete the configuration and the state."""
        self.reader.stop_all()
        (self.directory / "ionos-poller.toml").unlink(missing_ok=True)
        shutil.rmtree(self.directory / "state", ignore_errors=True)

    def close(self) -> None:
        self.reader.close()
        for file in (self.root / "run").glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)


def toml(tables: dict[str, Any]) -> str:
    """Write tables as TOML. JSON values are TOML, except tables."""
    lines = []
    for name, value in tables.items():
        if name == "sinks":
            for sink in value:
                lines += ["[[sinks]]", *(f"{key} = {inline(item)}" for key, item in sink.items())]
        elif isinstance(value, dict):
            lines += [f"[{name}]", *(f"{key} = {inline(item)}" for key, item in value.items())]
        else:
            lines.insert(0, f"{name} = {inline(value)}")
    return "\n".join(lines) + "\n"


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Simulator(SimulatorSettings(events=300, span_seconds=3000)) as simulator:
        made = Place(tmp_path, simulator)
        yield made
        made.close()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_does_what_the_page_says(page: Path, place: Place) -> None:
    for name in GIVEN.get(name_of(page), ()):
        shutil.copy(place.root / "etc/ionos-poller" / name, place.directory)
    for block in blocks(page):
        where = f"{name_of(page)}:{block.line_number}"
        try:
            LANGUAGES[block.language](place, block)
        except Exception as error:
            raise AssertionError(f"{where}: {error}") from error


def try_console(place: Place, block: Block) -> None:
    if re.match(r"\$ (mkdir trial|export IONOS_API_TOKEN)", block.text):
        place.begin_anew()
    for shown in commands(block):
        printed = place.reader.type(shown.command)
        assert differences(shown.output, printed) == [], "\n".join(printed)


def try_toml(place: Place, block: Block) -> None:
    assert place.take_toml(block.text)


def try_ini(place: Place, block: Block) -> None:
    """A section of a systemd unit, or an input of Fluent Bit, whose command is run."""
    if "[Service]" in block.text:
        keys = set(re.findall(r"^(\w+)=", block.text, re.MULTILINE))
        assert keys
        assert keys <= UNIT_KEYS
        return
    path = place.directory / "block.conf"
    path.write_text(block.text)
    ((kind, keys),) = classic_sections(path)
    assert (kind, keys["name"]) == ("input", "exec")
    state = place.root / "path/to/state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"last_run": (datetime.now(UTC) - timedelta(minutes=30)).isoformat()}))
    lines = place.reader.type(keys["command"])
    assert 0 < len(lines) < 600
    assert all(json.loads(line) for line in lines)


def try_yaml(place: Place, block: Block) -> None:
    """A scrape job of Prometheus with the daemon's address, or additions to compose.yaml."""
    if block.text.startswith("# compose.override.yaml"):
        given, added = yaml.safe_load((TOP / "compose.yaml").read_text()), yaml.safe_load(block.text)
        assert added.keys() <= given.keys()
        assert added["services"].keys() <= given["services"].keys()
        return
    (job,) = yaml.safe_load(block.text)["scrape_configs"]
    assert job["static_configs"] == [{"targets": [Config().http.listen]}]


def try_nginx(place: Place, block: Block) -> None:
    """It forwards to the daemon's address, with a login and TLS. tests/integration/test_page.py runs it."""
    assert f"proxy_pass http://{Config().http.listen};" in block.text
    assert {"ssl_certificate", "ssl_certificate_key", "auth_basic_user_file"} <= set(
        re.findall(r"^ +(\w+)", block.text, re.MULTILINE)
    )


def try_json(place: Place, block: Block) -> None:
    """An AWS policy with a permission for every call of the program, and no other."""
    (statement,) = json.loads(block.text)["Statement"]
    calls = set(re.findall(r'_call\("([a-z_]+)"', (TOP / "poller/sinks/firehose.py").read_text()))
    assert {action.removeprefix("firehose:").lower() for action in statement["Action"]} == {
        call.replace("_", "") for call in calls
    }


def try_drawing(place: Place, block: Block) -> None:
    """Every package that it names exists."""
    names = re.findall(r"│ +([a-z_.]+)(?:/\*)?(?:: | +[│├◄])", block.text)
    assert names
    for name in (name.replace(".", "/") for name in names):
        assert (TOP / "poller" / name).is_dir() or (TOP / "poller" / f"{name}.py").exists(), name


def try_elsewhere(place: Place, block: Block) -> None:
    """Blocks that need an archive or a database are run by test_archive.py and test_cluster_page.py."""
    assert block.text in archive_blocks(block.language) or block in blocks(TOP / "docs/cluster.md")


LANGUAGES = {
    "sh": try_elsewhere,
    "text": try_elsewhere,
    "sql": try_elsewhere,
    "console": try_console,
    "toml": try_toml,
    "ini": try_ini,
    "yaml": try_yaml,
    "json": try_json,
    "nginx": try_nginx,
    "": try_drawing,
}


@pytest.mark.parametrize(
    ("language", "text", "reason"),
    [
        ("console", "$ frobnicate\n", "command not found"),
        ("console", "$ ionos-poller frobnicate\n", "No such command"),
        ("console", "$ ionos-poller fetch --frobnicate\n", "No such option"),
        ("console", "$ ionos-poller --version\nionos-poller of old\n", "of old"),
        ("console", "$ ionos-poller fetch --contract <number>\n", "nobody fills in"),
        ("console", "$ pip install ionos-poller[frobnicate]\n", "no such extra"),
        ("console", "$ pip install frobnicate\n", "not this project"),
        ("console", "$ make frobnicate\n", "No rule to make target"),
        ("console", "# systemctl start frobnicate\n", "No such file"),
        ("console", "# systemctl frobnicate\n", "not known here"),
        ("console", "# install -m 0600 frobnicate /etc/ionos-poller/\n", "cannot stat"),
        ("toml", "[frobnicate]\n", "sinks"),
        ("toml", '[poll]\ninterval = "soon"\n', "not a duration"),
        ("toml", '# ionos-poller.toml\n[poll]\nfrobnicate = "1m"\n', "unknown key"),
        ("ini", "[Service]\nFrobnicate=yes\n", "Frobnicate"),
        ("yaml", "scrape_configs: []\n", "not enough values"),
        ("nginx", "location / { proxy_pass http://127.0.0.1:80; }\n", "proxy_pass"),
        ("", "│ frobnicate: it │\n", "frobnicate"),
        ("fortran", "", "fortran"),
    ],
)
def test_a_block_that_is_wrong_is_found(language: str, text: str, reason: str, place: Place) -> None:
    with pytest.raises(Exception, match=reason):
        LANGUAGES[language](place, Block("", language, text, 1))
