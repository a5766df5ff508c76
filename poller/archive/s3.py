"""An archive in a bucket of S3, or of any object storage with its protocol.

An object is written once: `put` looks for it, and then writes it on the condition that it does not exist, if the storage supports
conditions. So a repeat after a lost answer finds the object and makes no second version. AWS's library is imported when needed.
Source: docs/facts.md, "Object Storage"; the API reference of S3 (PutObject, object lock, conditional writes).
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from poller.archive import Listed, PlaceError, TakenError
from poller.config import ArchiveSink, Config
from poller.config.installed import needed
from poller.config.sink_base import MIB
from poller.core.delivery import RetryPolicy
from poller.core.errors import ConfigError
from poller.core.evidence.digest import PROBES, sha256
from poller.core.windows import format_time
from poller.net.aws import CREDENTIAL_CODES, CREDENTIAL_ERRORS, connection_reason, secrets_of
from poller.net.connections import DRIP_FACTOR, SendTimeoutError, TooLargeError, TooSlowError, bound_client
from poller.net.failures import root_cause
from poller.net.words import said
from poller.system.liveness import moves

_CONNECTIONS = 8
_MAX_OBJECT_BYTES = 128 * MIB
_MISSING = {"404", "NoSuchKey", "NotFound"}
_TAKEN = {"412", "PreconditionFailed"}
_NO_CONDITIONS = {"501", "NotImplemented"}
_BUSY = {"RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "OperationAborted"}
_FORBIDDEN = {"AccessDenied", "AccessDeniedException"}
_LOCK_WORDS = ("lock", "retention", "retain", "worm")
_MARKERS = ("ContinuationToken", "KeyMarker", "VersionIdMarker")  # where a list continues
_HASH = "sha256"  # the metadata that identifies our object without reading it
_PROBE_SECONDS = 60
_RETRIES = 6
_RETRY = RetryPolicy(initial_seconds=1.0, max_seconds=16.0)
_READ_BYTES = 1024 * 1024
_REMEDY_OF_RIGHTS = "needs s3:PutObject, s3:GetObject and s3:ListBucket"
_REMEDY_OF_KEYS = "check access_key and secret_key, or where AWS's library finds them"
_REMEDY_OF_CLOCK = "set the clock of this machine, with NTP"
_FORBIDDEN_REMEDIES = {
    "InvalidAccessKeyId": _REMEDY_OF_KEYS,
    "SignatureDoesNotMatch": _REMEDY_OF_KEYS,
    "RequestTimeTooSkewed": _REMEDY_OF_CLOCK,
    # The answer to HEAD has only a status.
    "403": f"{_REMEDY_OF_RIGHTS}; {_REMEDY_OF_KEYS}, and the clock of this machine",
}
# A rule of the bucket has moved the object to a storage class that cannot be read directly.
_COLD = "InvalidObjectState"
_REMEDY_OF_COLD = "restore it from its storage class; keep digests/ out of rules that move objects there"
_REMEDIES = {
    "NoSuchBucket": "create it, with object lock if it is to lock; check url, region and endpoint_url",
    "PermanentRedirect": "the bucket is in another region: check region and endpoint_url",
    "AuthorizationHeaderMalformed": "the bucket is in another region: check region",
    "InvalidStorageClass": "check storage_class",
    "InvalidRequest": "check that the bucket was created with object lock; check object_lock, encryption and storage_class",
    "ObjectLockConfigurationNotFoundError": "create the bucket with object lock",
    "MissingContentLength": "check endpoint_url",
}


class S3Place:
    """Objects of a bucket, below a prefix."""

    def __init__(self, settings: ArchiveSink, config: Config, *, is_patient: bool = False) -> None:
        """`is_patient`: requests that may work later are repeated up to `_RETRIES` times. A sink has its own waits.

        Raises: ConfigError if the library is missing.
        """
        with needed("archive", f"sinks.{settings.name}.url", "s3:// needs boto3"):
            import boto3  # noqa: F401 - only whether it is there
        self._bucket, _, prefix = settings.url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._settings = settings
        self._config = config
        self._client: Any = None
        self._credentials: Any = None
        self._lock = threading.Lock()
        self._secrets: list[str] = []
        self._knows_conditions = True
        self._retries = _RETRIES if is_patient else 0

    @property
    def url(self) -> str:
        return self._settings.url

    def put(self, key: str, content: bytes, *, retain_until: float | None = None) -> None:
        """As `Place.put`."""
        if self._is_there(key, content):
            return
        lock: dict[str, Any] = {}
        if retain_until is not None:
            until = datetime.fromtimestamp(retain_until, UTC)
            lock = {"ObjectLockMode": self._settings.object_lock.upper(), "ObjectLockRetainUntilDate": until}
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if self._knows_conditions else {}
        try:
            self._call("put_object", Key=self._prefix + key, **self._body(content), **lock, **condition)
        except _AnswerError as error:
            if error.code in _TAKEN and condition and self._is_there(key, content):
                return
            if error.code not in _NO_CONDITIONS or not condition:
                raise
            self._knows_conditions = False  # the storage has none; `_is_there` has already checked
            self.put(key, content, retain_until=retain_until)

    def _body(self, content: bytes) -> dict[str, Any]:
        settings = self._settings
        body: dict[str, Any] = {
            "Body": content,
            # Object lock requires it, and every storage supports it.
            "ContentMD5": base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode(),
            "Metadata": {_HASH: sha256(content)},
        }
        if settings.encryption != "none":
            body["ServerSideEncryption"] = settings.encryption
        if settings.encryption == "aws:kms" and settings.kms_key_id:
            body["SSEKMSKeyId"] = settings.kms_key_id
        if settings.storage_class:
            body["StorageClass"] = settings.storage_class
        return body

    def _is_there(self, key: str, content: bytes) -> bool:
        """Whether the object exists.  Raises: TakenError if it has other content."""
        try:
            head = self._call("head_object", Key=self._prefix + key)
        except _AnswerError as error:
            if error.code in _MISSING:
                return False
            raise
        if head.get("ContentLength") == len(content) and head.get("Metadata", {}).get(_HASH) == sha256(content):
            return True
        if self.get(key) != content:
            raise TakenError(f"{self.url}/{key}")
        return True

    def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
        """As `Place.get`."""
        try:
            answer = self._call("get_object", max_bytes, Key=self._prefix + key)
        except _AnswerError as error:
            if error.code in _MISSING:
                return None
            raise
        body: bytes = answer["Body"]
        return body

    def listing(self, prefix: str) -> Iterator[Listed]:
        """As `Place.listing`, but without versions if the storage or our rights do not show them.

        A storage without versions may refuse the list of versions, or return an empty list, or plain objects. An empty object
        whose key ends in a slash is a folder that a console made, and is skipped.
        """
        try:
            found = self._versions(prefix) or self._objects(prefix)
        except _AnswerError as error:
            if error.code in _REMEDIES or error.may_pass:
                raise
            found = self._objects(prefix)
        for key in sorted(found):
            if found[key][0] or not key.endswith("/"):
                yield Listed(key.removeprefix(self._prefix), *found[key])

    def _versions(self, prefix: str) -> dict[str, tuple[int, int, bool]]:
        found: dict[str, tuple[int, int, bool]] = {}
        for page in self._pages("list_object_versions", prefix):
            for version in page.get("Versions", ()):
                size, versions, is_deleted = found.get(version["Key"], (0, 0, False))
                found[version["Key"]] = (version["Size"] if version["IsLatest"] else size, versions + 1, is_deleted)
            for mark in page.get("DeleteMarkers", ()):
                size, versions, is_deleted = found.get(mark["Key"], (0, 0, False))
                found[mark["Key"]] = (size, versions, is_deleted or mark["IsLatest"])
        return found

    def _objects(self, prefix: str) -> dict[str, tuple[int, int, bool]]:
        pages = self._pages("list_objects_v2", prefix)
        return {item["Key"]: (item["Size"], 1, False) for page in pages for item in page.get("Contents", ())}

    def _pages(self, operation: str, prefix: str) -> Iterator[Mapping[str, Any]]:
        arguments: dict[str, Any] = {}
        while True:
            page = self._call(operation, Prefix=self._prefix + prefix, **arguments)
            yield page
            if not page.get("IsTruncated"):
                return
            before, arguments = arguments, {name: page[f"Next{name}"] for name in _MARKERS if page.get(f"Next{name}")}
            if arguments in ({}, before):
                reason = f"{self.url}: a list of objects is cut, and does not say where it goes on"
                raise _AnswerError(reason, code="", hint="check endpoint_url", is_refused=False, is_of_object=True)

    def delete(self, key: str) -> None:
        """As `Place.delete`."""
        self._call("delete_object", Key=self._prefix + key)

    def probe(self) -> list[str]:
        """Write an object and read it, and try to delete it; if objects are locked, a version of it."""
        key = f"{PROBES}{time.time_ns()}-{os.getpid()}"
        mode = self._settings.object_lock
        until = int(time.time()) + _PROBE_SECONDS
        self.put(key, b"probe\n", retain_until=None if mode == "none" else until)
        if self.get(key) != b"probe\n":
            raise PlaceError(f"{self.url}: what was written cannot be read", hint="check endpoint_url")
        if mode != "none":
            proven = self._prove_lock(key, until)
            self._sweep_probes()
            return ["objects can be written", proven]
        try:
            self.delete(key)
        except PlaceError as error:
            if not error.is_refused:
                raise
            return ["objects can be written, and not deleted with this key"]
        return ["objects can be written"]

    def _prove_lock(self, key: str, until: int) -> str:
        """The facts that are proven about the lock of a probe.  Raises: PlaceError if it does not hold, or cannot be checked."""
        version = self._locked_version(key, until)
        try:
            self._call("delete_object", Key=self._prefix + key, VersionId=version)
        except _AnswerError as error:
            if not error.is_of_object:
                raise
            refusal = error.message.removeprefix(self.url).lower()
        else:
            hint = "the lock does not hold: ask who runs the storage, or use another one"
            raise PlaceError(f"{self.url}: a version of a locked object could be deleted", hint=hint, is_refused=True)
        mode = self._settings.object_lock
        if any(word in refusal for word in _LOCK_WORDS):
            return f"no version can be deleted ({mode})"
        # The refusal may be due to a missing right. Then only the lock that the storage shows is known.
        self._locked_version(key, until)
        return (
            f"locked until {format_time(until)} in {mode} mode, as the storage says; not proven by deleting, which was refused"
            " by the lock or because this key may not delete"
        )

    def _locked_version(self, key: str, until: int) -> str:
        """The version of a probe.  Raises: PlaceError if it is not locked as requested."""
        kept = self._call("head_object", Key=self._prefix + key)
        version, at = kept.get("VersionId"), kept.get("ObjectLockRetainUntilDate")
        if not version or version == "null":
            hint = "create a bucket with object lock, which turns versions on"
            raise PlaceError(
                f"{self.url}: the bucket keeps no versions, so it locks nothing", hint=hint, is_refused=True
            )
        if kept.get("ObjectLockMode") != self._settings.object_lock.upper() or not at or int(at.timestamp()) < until:
            hint = "check object_lock, and whether the bucket was created with it"
            raise PlaceError(f"{self.url}: an object is not locked as asked for", hint=hint, is_refused=True)
        return str(version)

    def _sweep_probes(self) -> None:
        """Delete probes of earlier checks whose lock has ended."""
        with suppress(PlaceError):
            for page in self._pages("list_object_versions", PROBES):
                for version in page.get("Versions", ()):
                    with suppress(_AnswerError):
                        self._call("delete_object", Key=version["Key"], VersionId=version["VersionId"])

    def _call(self, operation: str, max_bytes: int | None = None, **arguments: Any) -> Any:
        """The answer to a call. The body of an object is read, with the limit of `Place.get`.  Raises: PlaceError."""
        for attempt in range(1, self._retries + 1):
            try:
                return self._call_once(operation, max_bytes, arguments)
            except PlaceError as error:
                if not error.may_pass:
                    raise
            time.sleep(_RETRY.wait_seconds(attempt, random.random))
        return self._call_once(operation, max_bytes, arguments)

    def _call_once(self, operation: str, max_bytes: int | None, arguments: Mapping[str, Any]) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        settings = self._settings
        reading_seconds = DRIP_FACTOR * settings.read_timeout_seconds
        moves(settings.connect_timeout_seconds + settings.send_timeout_seconds + reading_seconds)
        try:
            with self._lock:  # several threads write at once
                client = self._client = self._client or self._connect()
                self._secrets = secrets_of(self._credentials)
            answer = getattr(client, operation)(Bucket=self._bucket, **arguments)
            if operation == "get_object":
                answer["Body"] = answer["Body"].read() if max_bytes is None else _first(answer["Body"], max_bytes + 1)
        except ClientError as error:
            failure: PlaceError = self._refusal(error.response)
        except BotoCoreError as error:
            failure = self._failure(error)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - botocore fails in many ways if an answer is not S3's
            failure = PlaceError(
                f"{self.url}: the call failed: {type(error).__name__}", hint="check region and endpoint_url"
            )
        else:
            return answer
        if failure.is_refused:
            self._client = None  # the next call looks for credentials again
        raise failure

    def _refusal(self, response: Mapping[str, Any]) -> _AnswerError:
        error, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
        code, status = said(error.get("Code") or "", self._secrets), int(meta.get("HTTPStatusCode", 0))
        words = ": ".join(filter(None, (code, said(error.get("Message", ""), self._secrets)))) or f"HTTP {status}"
        is_refused = code in CREDENTIAL_CODES or code in _REMEDIES or status in (401, 403)
        is_busy = code in _BUSY or status in (0, 408, 429) or (status >= 500 and status != 501)
        # A policy or an encryption key may forbid access to one object only.
        is_of_place = code in _REMEDIES or status == 401 or (code in CREDENTIAL_CODES and code not in _FORBIDDEN)
        hint = _REMEDIES.get(code) or (_REMEDY_OF_COLD if code == _COLD else "")
        if status == 403 and not hint:
            hint = _FORBIDDEN_REMEDIES.get(code, _REMEDY_OF_RIGHTS)
        return _AnswerError(
            f"{self.url}: {words}",
            code=code or str(status),
            hint=hint,
            is_refused=is_refused,
            is_of_object=not is_busy and not is_of_place,
        )

    def _failure(self, error: Exception) -> PlaceError:
        """The error for a call without a usable answer. Its text names the kind of failure, never an address."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        name = type(error).__name__
        if not kinds.isdisjoint(CREDENTIAL_ERRORS):
            hint = "give access_key_file and secret_key_file, or see AWS's own settings"
            return PlaceError(f"{self.url}: no usable credentials: {name}", hint=hint, is_refused=True)
        root = root_cause(error)
        if isinstance(root, TooLargeError | TooSlowError | SendTimeoutError):
            return PlaceError(f"{self.url}: {root}", is_of_object=isinstance(root, TooLargeError))
        if reason := connection_reason(error):
            return PlaceError(f"{self.url}: {reason}")
        # The library refuses some keys before any request, for example an empty one.
        return PlaceError(f"{self.url}: the call failed: {name}", is_of_object="ParamValidationError" in kinds)

    def _connect(self) -> Any:
        import boto3
        from botocore.config import Config as ClientConfig
        from botocore.session import get_session

        settings = self._settings
        # A new session, because the default one keeps credentials until the process ends.
        core = get_session()
        keys: dict[str, str] = {}
        if settings.access_key is not None and settings.secret_key is not None:
            keys["aws_access_key_id"] = settings.access_key.read().reveal()
            keys["aws_secret_access_key"] = settings.secret_key.read().reveal()
        region = settings.region or ("us-east-1" if settings.endpoint_url else None)
        session = boto3.session.Session(region_name=region, botocore_session=core, **keys)
        endpoint = settings.endpoint_url or f"https://s3.{session.region_name}.amazonaws.com"
        ca_file = str(settings.ca_file) if settings.ca_file else self._config.ca_bundle
        client = session.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            # Always set here, because older libraries do not verify certificates if the variable is empty.
            verify=ca_file or core.get_config_variable("ca_bundle") or True,
            config=ClientConfig(
                connect_timeout=settings.connect_timeout_seconds,
                read_timeout=settings.read_timeout_seconds,
                retries={"total_max_attempts": 1, "mode": "standard"},
                max_pool_connections=_CONNECTIONS,
                proxies=self._config.proxies_for(endpoint),
                signature_version="s3v4",
                s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
                # Only AWS supports newer checksums: other storages refuse them.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        bound_client(client, settings.send_timeout_seconds, _MAX_OBJECT_BYTES)
        self._credentials = session.get_credentials()
        return client


class _AnswerError(PlaceError):
    """The storage answered with an error; `code` is its code."""

    def __init__(self, message: str, *, code: str, hint: str, is_refused: bool, is_of_object: bool) -> None:
        super().__init__(message, hint=hint, is_refused=is_refused, is_of_object=is_of_object)
        self.code = code


def _first(body: Any, count: int) -> bytes:
    """The first `count` bytes of a body. A shorter body is read to its end, so that a body that broke off is an error."""
    read = bytearray()
    while len(read) < count and (piece := body.read(min(count - len(read), _READ_BYTES))):
        read += piece
    if len(read) >= count:
        body.close()  # the rest is not read, so the connection cannot be reused
    return bytes(read)
