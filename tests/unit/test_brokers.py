"""What the errors of librdkafka and of brokers mean for a send."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from poller.config import KafkaSink
from poller.core.delivery import CredentialsRefused, Refused, RetryAfter, TooLarge
from poller.sinks.brokers import Brokers

DOWN = KafkaError(KafkaError._ALL_BROKERS_DOWN, "0/2 brokers are down")
TABLE = KafkaSink(name="k", brokers=("127.0.0.1:1",), topic="activity")


def outcome_of(name: str) -> Any:
    def fail() -> Any:
        raise KafkaException(KafkaError(getattr(KafkaError, name)))

    return Brokers(TABLE, threading.Event()).guarded(fail)


def outcome_after(*told: KafkaError, name: str) -> Any:
    """The outcome of a call that fails with error `name`, after connections failed with the errors `told`."""
    brokers = Brokers(TABLE, threading.Event())

    def fail() -> Any:
        for error in told:
            brokers.settings()["error_cb"](error)
        raise KafkaException(KafkaError(getattr(KafkaError, name)))

    return brokers.guarded(fail)


@pytest.mark.parametrize("name", ["_TIMED_OUT", "_TRANSPORT"])
def test_what_a_connection_failed_of_says_more_than_that_nobody_answered(name):
    outcome = outcome_after(DOWN, KafkaError(KafkaError._RESOLVE, "no such host"), DOWN, name=name)
    assert outcome == RetryAfter("no such host (check brokers)")


def test_brokers_that_are_all_down_are_not_counted():
    reason = "no broker can be reached (check brokers, the network on the way, and whether they use TLS)"
    assert outcome_after(DOWN, name="_TIMED_OUT") == RetryAfter(reason)


@pytest.mark.parametrize("code", [KafkaError._TRANSPORT, KafkaError._SSL])
@pytest.mark.parametrize(
    "alert",
    [
        "tlsv13 alert certificate required: SSL alert number 116",
        "sslv3 alert certificate expired",
        "sslv3 alert handshake failure",
        "tlsv1 alert unknown ca",
    ],
)
def test_an_alert_about_our_certificate_names_its_files(code, alert):
    outcome = outcome_after(KafkaError(code, f"Receive failed: {alert}"), name="_TRANSPORT")
    assert outcome == RetryAfter(
        f"Receive failed: {alert} (check that cert_file and key_file are what the brokers accept)"
    )


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"), TooLarge),
        (("INVALID_RECORD",), Refused),
        (
            ("TOPIC_AUTHORIZATION_FAILED", "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED"),
            CredentialsRefused,
        ),
        (("SASL_AUTHENTICATION_FAILED", "_AUTHENTICATION", "UNSUPPORTED_SASL_MECHANISM"), CredentialsRefused),
    ],
)
def test_what_is_about_an_entry_or_about_our_rights(names, kind):
    assert [type(outcome_of(name)) for name in names] == [kind] * len(names)


ABOUT_AN_ENTRY_OR_RIGHTS = (
    *("MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_RECORD", "ILLEGAL_SASL_STATE", "_AUTHENTICATION"),
    *("SASL_AUTHENTICATION_FAILED", "UNSUPPORTED_SASL_MECHANISM"),
)


def test_any_other_error_costs_no_entry():
    """This includes errors that librdkafka or Kafka add later."""
    names = [name for name in dir(KafkaError) if name.isupper() and "AUTHORIZATION" not in name]
    assert len(names) > 150
    for name in set(names) - set(ABOUT_AN_ENTRY_OR_RIGHTS):
        assert isinstance(outcome_of(name), RetryAfter), name


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("_FENCED", "no copy of this state runs"),
        ("INVALID_PRODUCER_EPOCH", "a transaction was not ended in time"),
        ("UNKNOWN_TOPIC_OR_PART", "create the topic"),
        ("TOPIC_EXCEPTION", "check topic"),
        ("UNSUPPORTED_COMPRESSION_TYPE", 'compression = "none"'),
        ("INVALID_TRANSACTION_TIMEOUT", "lower timeout"),
        ("NOT_ENOUGH_REPLICAS", "min.insync.replicas"),
        ("TOPIC_AUTHORIZATION_FAILED", "let this user write and read the topic"),
        ("_RESOLVE", "check brokers"),
    ],
)
def test_it_says_what_to_do(name, remedy):
    assert remedy in outcome_of(name).reason
