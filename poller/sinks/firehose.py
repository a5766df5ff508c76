"""AWS Data Firehose: PutRecordBatch, a line to a record.

Firehose joins records without a delimiter, so each ends with a newline. It takes a call in part, and has no key to tell a repeat
by: only what it did not take is sent again. AWS's library finds the credentials, signs, and is kept from retrying: that is ours
to decide. It is imported here alone, and only by who has such a sink.
Source: docs/facts.md, "AWS Data Firehose"; the API reference of PutRecordBatch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from requests.structures import CaseInsensitiveDict

from poller.config import FirehoseSink as Settings
from poller.config.installed import needed
from poller.config.sink_base import KIB, MIB
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, RetryAfter, TooLarge
from poller.core.events import OutboxEvent
from poller.net.aws import CREDENTIAL_CODES, CREDENTIAL_ERRORS, connection_reason, secrets_of
from poller.net.connections import DRIP_FACTOR, SendTimeoutError, TooLargeError, TooSlowError, bound_client
from poller.net.failures import root_cause
from poller.net.transport import RateLimit, retry_after_seconds
from poller.net.words import said
from poller.sinks.base import Context, Sink
from poller.sinks.render import build_render
from poller.system.files import can_open_files
from poller.system.liveness import moves

MAX_RECORDS = 500
MAX_CALL_BYTES = 4 * MIB
MAX_RECORD_BYTES = 1000 * KIB
_NEWLINE = b"\n"

# A call that did not come through may have been too much at once.
_SIZE_SUSPECTS = ("ReadTimeoutError", "ConnectionClosedError")
_REMEDIES = {
    "ResourceNotFoundException": "check stream and region: there is no such stream there",
    "InvalidArgumentException": "check that the stream's source is direct PUT",
    "InvalidKMSResourceException": "the stream's key cannot be used: check its state and policy in KMS",
}


class FirehoseSink(Sink):
    """PutRecordBatch to one stream. For one thread."""

    def __init__(self, settings: Settings, context: Context) -> None:
        """Raises: ConfigError when boto3 is not installed."""
        with needed("firehose", f"sinks.{settings.name}.type", "firehose needs boto3"):
            import boto3  # noqa: F401 - only whether it is there
        # Each record's newline counts.
        settings = msgspec.structs.replace(
            settings,
            batch_bytes=min(settings.batch_bytes, MAX_CALL_BYTES - MAX_RECORDS),
            max_event_bytes=min(settings.max_event_bytes, MAX_RECORD_BYTES - len(_NEWLINE)),
        )
        super().__init__(settings)
        self._table = settings
        self._config = context.config
        self._stop = context.stop
        self._render = build_render(settings)
        self._rate_limit = RateLimit(settings.requests_per_second)
        self._client: Any = None
        self._credentials: Any = None
        self._secrets: list[str] = []

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        render = self._render
        records = [(render(event) if render else event.line) + _NEWLINE for event in events]
        largest, size = max(map(len, records)), sum(map(len, records))
        if largest > self._table.max_event_bytes + len(_NEWLINE):
            return TooLarge(f"larger than max_event_bytes: a record of {largest} bytes")
        if size > MAX_CALL_BYTES or len(records) > MAX_RECORDS:
            return TooLarge(f"a call of {size} bytes in {len(records)} records")
        answer = self._call("put_record_batch", Records=[{"Data": record} for record in records])
        return answer if not isinstance(answer, dict) else outcome_of_answer(answer, len(records))

    def probe(self) -> Outcome:
        """Ask what the stream is: there is no call that takes no record."""
        answer = self._call("describe_delivery_stream")
        if isinstance(answer, CredentialsRefused) and "AccessDenied" in answer.reason:
            reason = (
                f"{answer.reason} (sending needs firehose:PutRecordBatch alone, this check DescribeDeliveryStream, too)"
            )
            return answer._replace(reason=reason)
        if not isinstance(answer, dict):
            return answer
        status = answer.get("DeliveryStreamDescription", {}).get("DeliveryStreamStatus")
        return Accepted() if status == "ACTIVE" else RetryAfter(f"the stream is {status}, not ACTIVE")

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any] | Outcome:
        """The answer of a call, or what its failure means.  Raises: StoppedError while waiting for a turn."""
        with self._rate_limit.wait(self._stop):
            return self._call_now(operation, arguments)

    def _call_now(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any] | Outcome:
        from botocore.exceptions import BotoCoreError, ClientError

        outcome: Outcome
        settings = self._table
        reading_seconds = DRIP_FACTOR * settings.read_timeout_seconds
        moves(settings.connect_timeout_seconds + settings.send_timeout_seconds + reading_seconds)
        try:
            if self._client is None:
                self._connect()
            self._secrets = secrets_of(self._credentials)
            answer: dict[str, Any] = getattr(self._client, operation)(
                DeliveryStreamName=self._table.stream, **arguments
            )
        except ClientError as error:
            outcome = outcome_of_error(error.response, self._secrets)
        except BotoCoreError as error:
            outcome = outcome_of_failure(error)
        except Exception as error:  # noqa: BLE001 - botocore trips over an answer that is not AWS's in many ways
            outcome = RetryAfter(f"the call failed: {type(error).__name__} (check region and endpoint_url)")
        else:
            return answer
        if isinstance(outcome, CredentialsRefused):
            if self._client is not None:
                self._client.close()
            self._client = None  # the next call looks for credentials anew
            if not can_open_files():  # the library takes a file that it could not open for one without credentials
                return RetryAfter("too many open files (raise the limit of open files: LimitNOFILE=, ulimit -n)")
        return outcome

    def _connect(self) -> None:
        import boto3
        from botocore.config import Config as ClientConfig
        from botocore.session import get_session

        settings = self._table
        # A session of its own: the default one would remember credentials for as long as the process lives.
        core = get_session()
        session = boto3.session.Session(region_name=settings.region, botocore_session=core)
        endpoint = settings.endpoint_url or f"https://firehose.{session.region_name}.amazonaws.com"
        ca_file = str(settings.ca_file) if settings.ca_file else self._config.ca_bundle
        self._client = session.client(
            "firehose",
            endpoint_url=settings.endpoint_url,
            # Never left to the library: older ones take an empty variable for the wish not to verify.
            verify=ca_file or core.get_config_variable("ca_bundle") or True,
            config=ClientConfig(
                connect_timeout=settings.connect_timeout_seconds,
                read_timeout=settings.read_timeout_seconds,
                retries={"total_max_attempts": 1, "mode": "standard"},
                max_pool_connections=1,
                proxies=self._config.proxies_for(endpoint),
            ),
        )
        bound_client(self._client, settings.send_timeout_seconds)
        self._credentials = session.get_credentials()


def outcome_of_answer(answer: Mapping[str, Any], count: int) -> Outcome:
    """What a 200 means for each of `count` records: taken, which its `RecordId` says, or to be sent again."""
    results = answer.get("RequestResponses")
    if (
        not isinstance(results, list)
        or len(results) != count
        or not all(isinstance(result, dict) for result in results)
    ):
        return RetryAfter("this is no answer of Firehose (check endpoint_url)")
    failed = {
        index: said(result.get("ErrorCode") or "no RecordId")
        for index, result in enumerate(results)
        if result.get("ErrorCode") or not result.get("RecordId")
    }
    if not failed:
        if answer.get("FailedPutCount"):
            return RetryAfter("the answer counts records that were not taken, and names none (check endpoint_url)")
        return Accepted(status=200)
    words = ", ".join(sorted(set(failed.values())))
    if len(failed) == count:
        return RetryAfter(f"no record was taken: {words}")
    return Accepted(retry=tuple(failed), later=RetryAfter(f"{len(failed)} of {count} records were not taken: {words}"))


def outcome_of_error(response: Mapping[str, Any], secrets: Sequence[str] = ()) -> Outcome:
    """What an error of AWS's means. It concerns the whole call, never one record: to Firehose they are only bytes."""
    error, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
    code, status = said(error.get("Code") or "", secrets), int(meta.get("HTTPStatusCode", 0)) or None
    words = said(error.get("Message", ""), secrets)
    # Of what is no answer of AWS's, the library takes the status for the code.
    reason = ": ".join(filter(None, (f"HTTP {code}" if code.isdigit() else code, words))) or f"HTTP {status}"
    if code in CREDENTIAL_CODES or status in (401, 403):
        return CredentialsRefused(reason, status)
    if status == 413 or code == "RequestEntityTooLargeException":
        return TooLarge(reason, status)
    is_redirect, is_busy = 300 <= (status or 0) < 400, status in (408, 429) or (status or 0) >= 500
    if remedy := _REMEDIES.get(code) or ("check region and endpoint_url" if is_redirect else ""):
        reason = f"{reason} ({remedy})"
    wait_seconds = retry_after_seconds(CaseInsensitiveDict(meta.get("HTTPHeaders") or {}), datetime.now(UTC))
    return RetryAfter(reason, wait_seconds, is_size_suspect=is_busy)


def outcome_of_failure(error: Exception) -> Outcome:
    """What it means that a call did not reach AWS, or was not even made. The text names the kind, never an address."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    name = type(error).__name__
    if not kinds.isdisjoint(CREDENTIAL_ERRORS):
        return CredentialsRefused(
            f"no usable AWS credentials: {name} (environment, profile or role: see AWS's own settings)"
        )
    root = root_cause(error)
    if isinstance(root, TooLargeError):
        return RetryAfter("the answer is larger than any of Firehose's (check endpoint_url)")
    if isinstance(root, TooSlowError):
        return RetryAfter("the answer came too slowly", is_size_suspect=True)
    if isinstance(root, SendTimeoutError):
        return RetryAfter("no more of the call was taken within send_timeout", is_size_suspect=True)
    if "ParamValidationError" in kinds:
        return RetryAfter("AWS's library does not take the request (check stream)")
    reason = connection_reason(error) or f"the call failed: {name}"
    return RetryAfter(reason, is_size_suspect=not kinds.isdisjoint(_SIZE_SUSPECTS))
