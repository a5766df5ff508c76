"""The part of `setup` that creates or reuses a pipeline of the Logging Service, with its key and a sink for it."""

from __future__ import annotations

import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click

from poller.checks.sinks import PIPELINE_TAG
from poller.cli.compose import authorization, transport_to
from poller.cli.messages import note, settle
from poller.cli.setup_steps import account_of, add_table, in_turn, path_beside
from poller.config import Config, LoggingServiceSink, SecretSource
from poller.config.checks import is_name
from poller.core.errors import ConfigError, Problem, RejectedError, StoppedError, TransientError
from poller.ionos.pipelines import MAX_NAME_CHARS, Pipeline, Pipelines
from poller.net.connections import DRIP_FACTOR
from poller.system.files import NewFile
from poller.system.terminals import is_capable

_FIRST_LOOK_SECONDS = 0.2
_LAST_LOOK_SECONDS = 5.0


class Wish(NamedTuple):
    """What the options ask for."""

    pipeline: str
    tag: str
    sink: str
    retention_days: int
    is_key_rotated: bool


class Plan(NamedTuple):
    """What exists, and what must be done."""

    config: Config
    config_path: Path
    found: Pipeline | None
    sink: LoggingServiceSink | None
    key_path: Path
    is_key_made: bool
    hash_key_path: Path | None

    def steps(self, wish: Wish) -> Iterator[str]:
        """Each step of `carry_out`, in one line; nothing if all is set up already."""
        if self.found is None:
            yield f"create the pipeline {wish.pipeline} with an HTTP log source of the tag {wish.tag}"
        elif wish.tag not in self.found.tags:
            yield f"add an HTTP log source of the tag {wish.tag} to the pipeline {self.found.name} ({self.found.id})"
        if self.found is not None and self.is_key_made:
            yield f"make a new key for the pipeline {self.found.name}: senders with the old one are then refused"
        if self.is_key_made:
            yield f"store its key in {self.key_path} (mode 0600)"
        if self.sink is None:
            verb = "add" if self.config.source else "write"
            yield f"{verb} the sink {wish.sink} to {self.config_path}"
        if self.hash_key_path is not None:
            yield f"store a new key for redact.hash in {self.hash_key_path} (mode 0600)"


# The options


def check_wish(wish: Wish) -> None:
    """Check the options before any request to the API.  Raises: ConfigError."""
    problems = []
    is_id = re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", wish.pipeline) is not None
    if not is_id and not (0 < len(wish.pipeline) <= MAX_NAME_CHARS and wish.pipeline.isprintable()):
        problems.append(Problem("--pipeline", "is not a name", f"use 1 to {MAX_NAME_CHARS} characters"))
    if not re.fullmatch(PIPELINE_TAG, wish.tag):
        problems.append(Problem("--tag", f"{wish.tag!r} is not a tag", "use 3 to 20 letters and digits"))
    if not is_name(wish.sink):
        problems.append(Problem("--sink", "is not a name", "use letters, digits, `_`, `.` and `-`"))
    if problems:
        raise ConfigError(problems)


# The plan


def connect(url: str, config: Config, name: str | None) -> Pipelines:
    return Pipelines(url, authorization(account_of(config, name)), transport_to(url, config))


def plan_of(wish: Wish, config: Config, config_path: Path, found: Pipeline | None, *, is_asking: bool) -> Plan:
    """Compare what exists with the options.  Raises: ConfigError if a person has to decide."""
    sink = next((sink for sink in config.sinks if sink.name == wish.sink), None)
    if sink is not None and (
        not isinstance(sink, LoggingServiceSink)
        or sink.tag != wish.tag
        or found is None
        or found.url not in ("", sink.url)
    ):
        hint = "choose another name for the new one with --sink, or change that one by hand"
        raise ConfigError.of(f"sinks.{wish.sink}", f"{config_path} has this sink, for something else", hint)
    assert sink is None or isinstance(sink, LoggingServiceSink)  # noqa: S101 - for the type checker
    key_path = _key_path(sink or _sibling(config, found), config_path, wish)
    is_key_made = found is None or wish.is_key_rotated
    if found is None and key_path.exists():
        hint = f"move it away, or name its pipeline: there is no pipeline {wish.pipeline}"
        raise ConfigError.of(str(key_path), "is the key of another pipeline", hint)
    if not is_key_made and not key_path.exists() and (sink is None or sink.api_key.origin in ("file", "missing")):
        is_key_made = is_asking and click.confirm(
            f"The pipeline {wish.pipeline} exists, but its key, which is shown once, is not in {key_path}. Make a new one?"
            " Senders with the old one are then refused",
            err=True,
        )
        if not is_key_made:
            hint = "put it there (mode 0600), or make a new one with --rotate-key, after which the old one is refused"
            raise ConfigError.of(str(key_path), f"the key of the pipeline {wish.pipeline} is not there", hint)
    return Plan(config, config_path, found, sink, key_path, is_key_made, _missing_hash_key(config.redact.hash_key))


def _sibling(config: Config, found: Pipeline | None) -> LoggingServiceSink | None:
    """Another sink of the same pipeline. All its sinks have one key."""
    sinks = (sink for sink in config.sinks if isinstance(sink, LoggingServiceSink))
    return next((sink for sink in sinks if found is not None and sink.url == found.url), None)


def _key_path(sink: LoggingServiceSink | None, config_path: Path, wish: Wish) -> Path:
    """Where the key is or will be.  Raises: ConfigError if a new key is wanted, but the old one is not in a file."""
    if sink is not None and sink.api_key.origin == "file":
        return Path(sink.api_key.place)
    if sink is not None and sink.api_key.origin != "missing" and wish.is_key_rotated:
        hint = "give the sink an api_key_file instead"
        raise ConfigError.of("--rotate-key", f"the key is in no file, but a {sink.api_key}", hint)
    # For the system's configuration, systemd's LoadCredential= reads the key from here, too.
    return config_path.parent / f"{wish.sink}.key"


def _missing_hash_key(source: SecretSource | None) -> Path | None:
    path = Path(source.place) if source is not None and source.origin == "file" else None
    return path if path is not None and not path.exists() else None


# Carrying it out


def carry_out(plan: Plan, wish: Wish, pipelines: Pipelines, timeout_seconds: float) -> None:
    """Do what must be done. If anything stops it, a second run continues from there."""
    # The API shows a key once: a signal must not interrupt before the key is on the disk, unless the API exceeds its time limit.
    grace_seconds = plan.config.api.read_timeout_seconds * DRIP_FACTOR
    found = in_turn(lambda _: _make(plan, wish, pipelines), grace_seconds=grace_seconds)
    if not found.is_ready:
        with _progress(f"waiting for the pipeline {found.name}, which takes some minutes"):
            found = in_turn(partial(_await_ready, pipelines, found, timeout_seconds))
    if plan.sink is None:
        key_file = path_beside(plan.key_path, plan.config_path)
        table = {
            "name": wish.sink,
            "type": "logging-service",
            "url": found.url,
            "tag": wish.tag,
            "api_key_file": key_file,
        }
        add_table(table, plan.config, plan.config_path)
    if plan.hash_key_path is not None:
        with NewFile(plan.hash_key_path) as file:
            file.write(secrets.token_hex(32).encode() + b"\n")
            file.commit()
        note(
            f"stored a new key for redact.hash in {plan.hash_key_path}: keep a copy, it is what makes equal hashes equal"
        )


def _make(plan: Plan, wish: Wish, pipelines: Pipelines) -> Pipeline:
    """Create the pipeline, or use the one found, and store its key."""
    found = plan.found
    with ExitStack() as stack:
        # The file is created first: the key is shown once, and must not be lost because a file cannot be created.
        key_file = stack.enter_context(NewFile(plan.key_path)) if plan.is_key_made else None
        key = None
        if found is None:
            found, key = pipelines.create(wish.pipeline, wish.tag, wish.retention_days)
        elif wish.tag not in found.tags:
            pipelines.add_tag(found.id, wish.tag, wish.retention_days)
            found = pipelines.get(found.id)
        if key_file is not None:
            key = key or pipelines.new_key(found.id)
            key_file.write(key.reveal().encode() + b"\n")
            key_file.commit()
            note(f"stored the key in {plan.key_path}")
    return found


def _await_ready(pipelines: Pipelines, found: Pipeline, timeout_seconds: float, stop: threading.Event) -> Pipeline:
    """Wait until the pipeline accepts events.  Raises: TransientError if it takes too long, RejectedError if it is broken."""
    deadline = time.monotonic() + timeout_seconds
    wait = _FIRST_LOOK_SECONDS
    failure = ""
    while True:
        if found.is_ready:
            return found
        if found.is_broken:
            hint = "look at it in the DCD, or make another one with another --pipeline"
            raise RejectedError(f"the pipeline {found.name} is {found.state.lower()}", hint=hint)
        if time.monotonic() >= deadline:
            what = failure or f"is still {found.state.lower()}"
            hint = "run setup again: it goes on from here"
            raise TransientError(f"the pipeline {found.name} is not ready: {what}", hint=hint)
        if stop.wait(wait):
            raise StoppedError("asked to stop")
        wait = min(wait * 1.5, _LAST_LOOK_SECONDS)
        try:
            found = pipelines.get(found.id)
        except TransientError as error:  # IONOS continues to create the pipeline
            failure = error.message


@contextmanager
def _progress(text: str) -> Iterator[None]:
    """A spinner with the elapsed time on a terminal, otherwise one line."""
    if not is_capable(sys.stderr):
        note(text)
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(text, total=None)
        yield
    settle()
