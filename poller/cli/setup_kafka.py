"""`setup --kafka`: from a token to a working sink for IONOS Event Streams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from poller.cli.acting import log_done
from poller.cli.check import run_checks, show
from poller.cli.compose import authorization, transport_to
from poller.cli.messages import note
from poller.cli.options import Settings
from poller.cli.setup_steps import account_of, add_table, confirm, in_turn, load_existing, path_beside, tell_steps
from poller.cli.stopping import until_stopped
from poller.config import Config, KafkaSink, find_config, process_environment
from poller.config.checks import is_name
from poller.config.load import LOCAL_CONFIG
from poller.core.errors import EXIT_OK, ConfigError, RejectedError
from poller.ionos.event_streams import Access, Cluster, EventStreams, User
from poller.system.files import NewFile


class KafkaWish(NamedTuple):
    """What the options ask for."""

    cluster: str
    user: str | None
    topic: str
    sink: str
    account: str | None
    is_agreed: bool
    is_dry_run: bool


class _Files(NamedTuple):
    """The paths of the certificates and the key."""

    ca: Path
    certificate: Path
    key: Path


def set_up_kafka(settings: Settings, url: str, wish: KafkaWish) -> int:
    """Fetch the certificates of a user of the cluster, add the sink, and check it. A second run fetches them again.

    Raises: ConfigError, AuthError, RejectedError, TransientError.
    """
    for option, name in (("--topic", wish.topic), ("--sink", wish.sink)):
        if not is_name(name):
            raise ConfigError.of(option, "is not a name", "use letters, digits, `_`, `.` and `-`")
    config_path = find_config(settings.config, process_environment()) or LOCAL_CONFIG
    config = load_existing(config_path, settings)
    account = account_of(config, wish.account)
    streams = EventStreams(url, authorization(account), transport_to(url, config))
    cluster = in_turn(lambda _: streams.find(wish.cluster))
    if not cluster.brokers:
        hint = "look at it in the DCD, and run setup again when it is available"
        raise RejectedError(f"the cluster {cluster.name} has no brokers yet ({cluster.state.lower()})", hint=hint)
    user = in_turn(lambda _: streams.user(cluster, wish.user))
    sink = _sink_of(config, config_path, wish, cluster)
    files = _files(sink, config_path, wish)
    steps = list(_steps(config, config_path, wish, files, user, is_new=sink is None))
    tell_steps(steps, is_dry_run=wish.is_dry_run)
    if wish.is_dry_run:
        return EXIT_OK
    confirm(wish.is_agreed)
    log_done("setup", "; ".join(steps))
    _store(files, in_turn(lambda _: streams.access(cluster, user)))
    if sink is None:
        paths = {
            f"{name}_file": path_beside(path, config_path)
            for name, path in zip(("ca", "cert", "key"), files, strict=True)
        }
        table = {"name": wish.sink, "type": "kafka", "brokers": list(cluster.brokers), "topic": wish.topic, **paths}
        add_table(table, config, config_path)
    note("all done; checking it:")
    settings.config = str(config_path)
    return until_stopped(lambda stop: show(run_checks(settings, stop)))


def _sink_of(config: Config, config_path: Path, wish: KafkaWish, cluster: Cluster) -> KafkaSink | None:
    """The sink, if the configuration has it already.  Raises: ConfigError if another sink has its name."""
    sink = next((sink for sink in config.sinks if sink.name == wish.sink), None)
    if sink is None:
        return None
    is_it = isinstance(sink, KafkaSink) and set(sink.brokers) & set(cluster.brokers) and sink.topic == wish.topic
    if not is_it or not isinstance(sink, KafkaSink):
        hint = "choose another name for the new one with --sink, or change that one by hand"
        raise ConfigError.of(f"sinks.{wish.sink}", f"{config_path} has this sink, for something else", hint)
    return sink


def _files(sink: KafkaSink | None, config_path: Path, wish: KafkaWish) -> _Files:
    beside = [config_path.parent / f"{wish.sink}.{what}.pem" for what in ("ca", "cert", "key")]
    named = [sink.ca_file, sink.cert_file, sink.key_file] if sink is not None else [None] * 3
    return _Files(*(given or usual for given, usual in zip(named, beside, strict=True)))


def _steps(
    config: Config, config_path: Path, wish: KafkaWish, files: _Files, user: User, *, is_new: bool
) -> Iterator[str]:
    """Each step that will be done, in one line."""
    names = f"{files.ca}, {files.certificate} and {files.key}"
    yield f"store the certificates and the key of the user {user.name} in {names} (mode 0600)"
    if is_new:
        yield f"{'add' if config.source else 'write'} the sink {wish.sink} to {config_path}"


def _store(files: _Files, access: Access) -> None:
    for path, content in zip(files, (access.ca, access.certificate, access.key.reveal()), strict=True):
        with NewFile(path) as file:
            file.write(content.encode())
            file.commit()
    note(f"stored the certificates in {files.ca.parent.absolute()}")
