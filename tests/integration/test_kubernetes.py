"""The manifests in kubernetes/: rendered by kubectl, checked with the schemas of Kubernetes, their containers run as processes.

No cluster is used.
"""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from poller.simulator import Simulator, SimulatorSettings
from tests.documents import Block, blocks, commands
from tests.support import COMMAND, TOP, clean_environment, free_port, wait_until

HERE = TOP / "kubernetes"
VERSIONS = ["1.28", "1.31", "1.34", "1.37"]
OVERLAYS = ["base", "overlays/sqlite"]
SECRETS = Path("/run/secrets/ionos-poller")


def rendered(directory: Path) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("NOT CHECKED: kubectl is not here, which renders the manifests")
    done = subprocess.run([kubectl, "kustomize", str(directory)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> dict[str, Any]:
    (found,) = [item for item in objects if item["kind"] in kinds]
    return found


def container_of(objects: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The specifications of the pod and of its only container."""
    pod = of_kind(objects, "Deployment", "StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_one_of_kubernetes(overlay: str, version: str) -> None:
    for item in rendered(HERE / overlay):
        kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_selects_pods_selects_ours(overlay: str) -> None:
    objects = rendered(HERE / overlay)
    workload = of_kind(objects, "Deployment", "StatefulSet")["spec"]
    labels = workload["template"]["metadata"]["labels"].items()
    selectors = [workload["selector"]["matchLabels"], of_kind(objects, "Service")["spec"]["selector"]]
    selectors += [item["spec"]["selector"]["matchLabels"] for item in objects if item["kind"] == "PodDisruptionBudget"]
    assert all(selector.items() <= labels for selector in selectors)
    assert len(selectors) == (3 if overlay == "base" else 2), (
        "a budget for a single pod keeps a node from being drained"
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_container_may_do_no_more_than_it_must(overlay: str) -> None:
    pod, container = container_of(rendered(HERE / overlay))
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not [item for item in container["env"] if re.search("TOKEN|PASSWORD|KEY", item["name"])]
    assert set(container["resources"]["limits"]) == {"memory"}, "a limit of the processor only delays"


def test_the_service_monitor_finds_the_service(tmp_path: Path) -> None:
    objects = rendered(_written(tmp_path, _readme_overlay()))
    service, monitor = of_kind(objects, "Service"), of_kind(objects, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [endpoint["port"] for endpoint in monitor["endpoints"]] == [
        port["name"] for port in service["spec"]["ports"]
    ]
    _, container = container_of(objects)
    assert container["image"] == "registry.example/ionos-poller:0.1.0"


def test_the_page_makes_the_secret_that_the_manifests_mount() -> None:
    (block,) = [block for block in blocks(HERE / "README.md") if block.language == "console"]
    create, apply, execute = [shown.command for shown in commands(block)]
    names = {Path(name).name for name in re.findall(r"--from-file=(\S+)", create)}
    config = tomllib.loads((HERE / "base/config.toml").read_text())
    used = [config["state"]["password_file"], config["api"]["token_file"], config["sinks"][0]["api_key_file"]]
    assert names == {Path(path).name for path in used}
    assert {Path(path).parent for path in used} == {SECRETS}
    assert apply == "kubectl apply -k kubernetes/my-overlay"
    assert execute.endswith("deploy/ionos-poller -- ionos-poller check")


def _readme_overlay() -> Block:
    (block,) = [block for block in blocks(HERE / "README.md") if block.language == "yaml"]
    return block


def _written(directory: Path, block: Block) -> Path:
    """Write the overlay of the page in a copy of the folder."""
    shutil.copytree(HERE, directory / "kubernetes")
    overlay = directory / "kubernetes/my-overlay"
    overlay.mkdir()
    shutil.copy(HERE / "base/config.toml", overlay)
    (overlay / "kustomization.yaml").write_text(block.text)
    return overlay


class Pod:
    """The container of a manifest as a process, with its arguments, environment and mounts. All paths are below a directory."""

    def __init__(self, root: Path, objects: list[dict[str, Any]], simulator: Simulator) -> None:
        pod, container = container_of(objects)
        self.root, self.container = root, container
        self.grace_seconds = pod["terminationGracePeriodSeconds"]
        self.read_only = [root / mount["mountPath"][1:] for mount in container["volumeMounts"] if mount.get("readOnly")]
        for mount in container["volumeMounts"]:
            (root / mount["mountPath"][1:]).mkdir(parents=True)
        text = of_kind(objects, "ConfigMap")["data"]["config.toml"]
        text = text.replace("https://<httpAddress of the pipeline>", f"{simulator.url}/sink/logging")
        (root / "etc/ionos-poller/config.toml").write_text(text.replace(str(SECRETS), f"{root}{SECRETS}"))
        for name, value in {"token": simulator.token, "logging.key": simulator.settings.api_key}.items():
            (root / f"{SECRETS}"[1:] / name).write_text(value)
        for directory in self.read_only:
            directory.chmod(0o500)
        self.port = free_port()
        (port,) = container["ports"]
        values = {item["name"]: item["value"] for item in container["env"]}
        environment = {
            name: f"{root}{value}"
            if value.startswith("/")
            else value.replace(f":{port['containerPort']}", f":{self.port}")
            for name, value in values.items()
        }
        with (root / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                [*COMMAND, *container["args"]],
                cwd=self.read_only[0],
                env=clean_environment({**environment, "IONOS_API_URL": simulator.url}),
                stderr=stderr,
            )

    def probe(self, name: str) -> int:
        """The HTTP status that the kubelet gets, which calls the pod by its address; 0 if it does not answer."""
        probe = self.container[name]["httpGet"]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", probe["path"])
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def files_written(self) -> set[str]:
        """Files that the program created in directories that should be read-only."""
        given = {"config.toml", "token", "logging.key"}
        return {path.name for directory in self.read_only for path in directory.rglob("*")} - given


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorSettings(contracts=2, events=100, span_seconds=200)) as running:
        yield running


def test_the_pod_with_a_file_delivers_answers_its_probes_and_ends_in_time(tmp_path: Path, simulator: Simulator) -> None:
    pod = Pod(tmp_path, rendered(HERE / "overlays/sqlite"), simulator)
    try:
        wait_until(lambda: pod.probe("readinessProbe") == 200, timeout=30)
        assert pod.probe("livenessProbe") == 200
        wait_until(lambda: simulator.books("logging").received > 0, timeout=30)
        pod.process.send_signal(signal.SIGTERM)
        assert pod.process.wait(pod.grace_seconds) == 0
    finally:
        pod.process.kill()
        pod.process.wait()
        print((tmp_path / "stderr").read_text(), file=sys.stderr)
    assert pod.files_written() == set()
    assert simulator.books("logging").lost == 0
