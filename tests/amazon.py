"""A fake of AWS's library, as far as we use it. It records how clients are made; the test provides their answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import boto3.session
import pytest
from botocore.exceptions import ClientError


def refused(code: str | None = None, status: int | None = None, message: str | None = "words") -> ClientError:
    """An error answer of a service. Arguments that are None are left out."""
    error = {name: value for name, value in (("Code", code), ("Message", message)) if value is not None}
    meta = {} if status is None else {"HTTPStatusCode": status}
    return ClientError({"Error": error, "ResponseMetadata": meta}, "call")


class Library:
    """`client` is the client that every session makes, `credentials` are the credentials that it finds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str, client: Any) -> None:
        """`module`: the module that makes the clients."""
        self.client = client
        self.credentials: tuple[str, str, str | None] | None = ("canary-access", "canary-secret", "canary-token")
        self.sessions: list[dict[str, Any]] = []
        self.clients: list[dict[str, Any]] = []
        self.bounds: list[tuple[Any, ...]] = []
        self.failure: Exception | None = None
        monkeypatch.setattr(boto3.session, "Session", self._session)
        monkeypatch.setattr(f"{module}.bound_client", lambda client, *bounds: self.bounds.append((client, *bounds)))

    def _session(self, **given: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        self.sessions.append(given)

        def frozen() -> Any:
            access, secret, token = self.credentials or ("", "", None)
            return SimpleNamespace(access_key=access, secret_key=secret, token=token)

        return SimpleNamespace(
            region_name=given["region_name"] or "eu-west-9",
            client=self._make,
            get_credentials=lambda: SimpleNamespace(get_frozen_credentials=frozen) if self.credentials else None,
        )

    def _make(self, service: str, **given: Any) -> Any:
        self.clients.append({"service": service, **given})
        return self.client

    @property
    def config(self) -> dict[str, Any]:
        """The options in the `config` of the last client, without the options that were not given."""
        config = self.clients[-1]["config"]
        return {name: getattr(config, name) for name in config._user_provided_options}
