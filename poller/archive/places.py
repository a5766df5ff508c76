"""Opens the place of an archive, by its URL."""

from __future__ import annotations

from pathlib import Path

from poller.archive import Place
from poller.archive.directory import DirectoryPlace
from poller.config import ArchiveSink, Config


def open_place(settings: ArchiveSink, config: Config, *, is_patient: bool = False) -> Place:
    """The place that a table describes; the library for buckets is imported only where it is one.  Raises: ConfigError.

    `is_patient`: a bucket is asked again where that may help, for who has no other way to wait.
    """
    if settings.url.startswith("file://"):
        return DirectoryPlace(Path(settings.url.removeprefix("file://")))
    from poller.archive.s3 import S3Place

    return S3Place(settings, config, is_patient=is_patient)
