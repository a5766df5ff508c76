"""A stand-in for AWS: moto's server as a process, and a client with which a test prepares and checks data there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from tests.support import clean_environment, free_port, wait_until

REGION = "eu-central-1"


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """The URL of a server. It is killed when the block ends."""
    output = directory / "output"
    port = free_port()
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env=clean_environment() | {"PYTHONWARNINGS": "ignore"},
            stdout=file,
            stderr=file,
        )
    try:
        wait_until(lambda: b"Running on" in output.read_bytes(), 30, what="moto answers")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def client(service: str, url: str) -> Any:
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.session.Session(region_name=REGION, **keys).client(service, endpoint_url=url)
