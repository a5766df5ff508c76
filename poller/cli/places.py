"""What PLACE means on the command line: a directory, a URL, or the name of a sink."""

from __future__ import annotations

import os
from pathlib import Path

import click

from poller.archive import Place
from poller.cli.options import PathType, Settings
from poller.config import ArchiveSink, Config
from poller.config.checks import BadValueError, check_archive
from poller.core.errors import ConfigError

PLACE = click.argument("place", metavar="PLACE", type=PathType(None))


def place_of(settings: Settings, text: str) -> Place:
    """Open the named place. A directory needs no configuration. A bucket that a sink uses is opened with the sink's settings.

    For a bucket, errors that may pass are retried.

    Raises: ConfigError.
    """
    from poller.archive.directory import DirectoryPlace
    from poller.archive.places import open_place

    if "://" not in text and ("/" in text or os.path.isdir(text)):  # noqa: PTH112 - never raises
        settings.setup_logging()
        return DirectoryPlace(Path(text))
    if text.startswith("file://"):
        settings.setup_logging()
        return open_place(ArchiveSink(name="archive", url=_checked(text)), Config())
    config = settings.load()
    sinks = [sink for sink in config.sinks if isinstance(sink, ArchiveSink)]
    if "://" in text:
        url = _checked(text)
        known = next((sink for sink in sinks if sink.url == url), None)
        return open_place(known or ArchiveSink(name="archive", url=url), config, is_patient=True)
    for sink in sinks:
        if sink.name == text:
            return open_place(sink, config, is_patient=True)
    hint = "give a directory, a URL such as s3://bucket/prefix, or the name of a sink of type archive"
    raise ConfigError.of("PLACE", f"{text} is no directory and no archive of the configuration", hint)


def _checked(text: str) -> str:
    try:
        return check_archive(text)
    except BadValueError as error:
        raise ConfigError.of("PLACE", error.message, error.hint) from error
