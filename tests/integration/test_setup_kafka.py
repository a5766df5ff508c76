"""`setup --kafka` against a stand-in for the API of Event Streams: the certificates on disk, the sink in the configuration."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest

from poller.core.errors import AuthError, ConfigError, PollerError, RejectedError, TransientError
from poller.ionos.event_streams import EventStreams
from poller.net.transport import Transport
from poller.simulator import Simulator, SimulatorSettings
from tests.integration.fetching import Bench, Run, Starter

NAMES = ("stream.ca.pem", "stream.cert.pem", "stream.key.pem")


@pytest.fixture
def place(bench: Starter) -> Bench:
    place = bench(contracts=1, events=5, kafka_brokers=("127.0.0.1:1",))
    (place.directory / "ionos-poller.toml").write_text('# mine\n[http]\nlisten = ""\n')
    return place


def setup(place: Bench, *args: str) -> Run:
    url = place.simulator.url
    return place.run("setup", "--kafka", "events", "--api-url", url, "--kafka-user", "poller", *args)


def sinks(place: Bench) -> list[dict[str, Any]]:
    return list(tomllib.loads((place.directory / "ionos-poller.toml").read_text()).get("sinks", []))


def test_it_stores_the_certificates_and_adds_the_sink_once(place: Bench) -> None:
    run = setup(place, "--yes", "--topic", "audit")
    assert run.code != 2, run.stderr
    assert any(line.startswith(b"fail  sink stream") for line in run.lines), (
        "it ends with check, and no broker is there"
    )
    files = dict(zip(("ca_file", "cert_file", "key_file"), NAMES, strict=True))
    assert sinks(place) == [{"name": "stream", "type": "kafka", "brokers": ["127.0.0.1:1"], "topic": "audit", **files}]
    for name in NAMES:
        path = place.directory / name
        assert path.read_text().startswith("-----BEGIN ")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "PRIVATE KEY" in (place.directory / NAMES[2]).read_text()
    assert "u1privateKey" not in run.stderr + b"".join(run.lines).decode()
    key = place.directory / NAMES[2]
    key.write_text("old")
    again = setup(place, "--yes", "--topic", "audit")
    assert again.code != 2, again.stderr
    assert key.read_text() != "old", "certificates are fetched anew"
    assert len(sinks(place)) == 1


def test_a_dry_run_changes_nothing_and_says_what_it_would_do(place: Bench) -> None:
    run = setup(place, "--dry-run")
    assert run.code == 0, run.stderr
    assert run.lines[0].startswith(b"would store the certificates and the key of the user poller")
    assert run.lines[-1] == b"nothing was changed"
    assert sorted(path.name for path in place.directory.glob("stream*")) == []
    assert sinks(place) == []


@pytest.fixture
def api() -> Any:
    with Simulator(SimulatorSettings(events=0)) as simulator:
        transport = Transport(timeout_seconds=(1.0, 1.0))
        yield lambda token="": EventStreams(simulator.url, f"Bearer {token or simulator.token}", transport)


def raised(kind: type[PollerError], work: Any) -> str:
    with pytest.raises(kind) as caught:
        work()
    return str(caught.value)


def test_who_has_no_such_cluster_or_user_is_told_what_there_is(api: Any) -> None:
    cluster = api().find("events")
    assert (cluster.brokers, cluster.state) == (("10.7.222.11:9093",), "AVAILABLE")
    assert api().user(cluster, "poller").id == "u1"
    assert "no cluster 'other'" in raised(ConfigError, lambda: api().find("other"))
    assert "poller, reader" in raised(ConfigError, lambda: api().user(cluster, None))
    assert "refused the token" in raised(AuthError, lambda: api("wrong").find("events"))
    assert "refused the request" in raised(RejectedError, lambda: api().user(cluster._replace(id="x"), "poller"))


class Answers:
    """A transport that gives one answer."""

    def __init__(self, status: int, body: bytes) -> None:
        self.answer = (status, body)

    def request(self, *args: Any, **options: Any) -> Any:
        from poller.net.transport import Response

        return Response(self.answer[0], {}, self.answer[1])


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (503, b"", TransientError),
        (403, b"{}", AuthError),
        (200, b"<html>", TransientError),
        (200, b"[]", TransientError),
        (200, b'{"items":{}}', ConfigError),
        (200, b'{"items":[1,{"id":3,"metadata":[]}]}', ConfigError),
    ],
)
def test_an_answer_that_is_none_of_the_apis_is_told(status: int, body: bytes, kind: type[PollerError]) -> None:
    streams = EventStreams("https://x", "Bearer t", Answers(status, body))  # type: ignore[arg-type]
    raised(kind, lambda: streams.find("events"))


@pytest.mark.parametrize("key", ["null", '"no PEM"', '"-----BEGIN X-----"'])
def test_a_key_that_is_none_is_not_stored(key: str) -> None:
    body = b'{"metadata":{"certificateAuthority":%s,"certificate":%s,"privateKey":%s}}' % ((key.encode(),) * 3)
    streams = EventStreams("https://x", "Bearer t", Answers(200, body))  # type: ignore[arg-type]
    from poller.ionos.event_streams import Cluster, User

    message = raised(TransientError, lambda: streams.access(Cluster("c", "c", "", ()), User("u", "u")))
    assert "no certificates" in message
    assert Path("no PEM").name not in message
