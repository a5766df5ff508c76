"""Made-up but lifelike Activity Log entries, fast to render: entry i of a contract is a pure function of
(seed, contract, i), and of the time the log gives it.

A pool of templates is made once per seed; an entry is one template with a unique key, its time and its
contract filled in. Nothing is stored per entry. All names and addresses are from
ranges reserved for documentation.

Source: docs/facts.md, "IONOS Activity Log API": shape of an entry, event types and their proportions.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from binascii import hexlify
from functools import lru_cache
from typing import Any, NamedTuple

_POOL_SIZE = 1000
_KEY_MASK = (1 << 48) - 1
_UUID_END = len('{"@uuid":"') + 36 + len('",')
_STEP = 0x9E3779B97F4B  # odd, so that i -> i * _STEP mod 2**48 never gives one key twice

_TYPES = (
    ("RequestStatusUpdate", 550),
    ("RequestAccepted", 170),
    ("Provision", 150),
    ("GenerateToken", 60),
    ("RequestFailed", 45),
    ("Error", 25),
)
_USERS = (
    "anna.becker",
    "jonas.krüger",
    "maria.santos",
    "terraform-ci",
    "k8s-autoscaler",
    "piotr.nowak",
    "ops-oncall",
    "chloé.martin",
)
_SERVICES = ("DCD", "PUBLIC_REST", "PUBLIC_REST_V6", "Provisioning")
_HOSTS = ("dcd-fra-1.example.net", "api-fra-2.example.net", "api-txl-1.example.net", "prov-txl-3.example.net")
_NETWORKS = ("192.0.2.", "198.51.100.", "203.0.113.", "2001:db8:51::")
_RESOURCES = (
    ("datacenter", "datacenters"),
    ("server", "datacenters/{parent}/servers"),
    ("volume", "datacenters/{parent}/volumes"),
    ("nic", "datacenters/{parent}/servers/{id}/nics"),
    ("lan", "datacenters/{parent}/lans"),
    ("snapshot", "snapshots"),
    ("ipblock", "ipblocks"),
    ("k8s-cluster", "k8s"),
    ("user", "um/users"),
    ("group", "um/groups"),
)
_VERBS = {"GET": "READ", "POST": "CREATE", "PUT": "UPDATE", "PATCH": "UPDATE", "DELETE": "DELETE"}
_ERRORS = (
    (422, "100", '[(root).properties.cores] The attribute "cores" must be between 1 and 62'),
    (404, "309", "Resource does not exist"),
    (423, "331", "The virtual data center is locked by another provisioning request"),
    (503, "2000", "Kapazität in dieser Zone erschöpft, bitte später erneut versuchen"),
    (403, "315", "The user lacks the privilege to perform this action"),
)


class _Template(NamedTuple):
    id_prefix: bytes  # with the key after it: the entry's UUID
    pieces: tuple[bytes, ...]  # what stands around key, time, key, key, contract, contract: seven pieces


def _uuid_prefix(rng: random.Random) -> str:
    first, second, third, fourth = (rng.getrandbits(bits) for bits in (32, 16, 12, 12))
    return f"{first:08x}-{second:04x}-4{third:03x}-9{fourth:03x}-"


def _uuid(rng: random.Random) -> str:
    return f"{_uuid_prefix(rng)}{rng.getrandbits(48):012x}"


def _event(rng: random.Random, kind: str) -> dict[str, Any]:
    """The `event` of one entry: who did what to which resource, and how it went."""
    service = rng.choice(_SERVICES)
    if kind == "GenerateToken":
        uri = "/auth/v1/tokens/generate"
        return {
            "type": kind,
            "status": "DONE",
            "message": "Token generated for the interactive session of the user; it expires after one hour",
            "param": {"action": "GET", "uri": uri, "initiator": "USER", "sourceService": service},
            "resources": [{"type": "token", "id": _uuid(rng), "action": ["CREATE"]}],
        }
    method = rng.choices(tuple(_VERBS), (25, 35, 15, 15, 10))[0]
    resource, path = rng.choice(_RESOURCES)
    target, parent = _uuid(rng), _uuid(rng)
    uri = f"/cloudapi/v6/{path.format(parent=parent, id=_uuid(rng))}"
    if method != "POST":
        uri += f"/{target}"
    event: dict[str, Any] = {
        "type": kind,
        "status": {"RequestAccepted": "QUEUED", "Error": "FAILED", "RequestFailed": "FAILED"}.get(
            kind, rng.choice(("RUNNING", "DONE", "DONE"))
        ),
        "message": f"{method} {resource} in “{rng.choice(('Prod', 'Test', 'Büro'))}”",
        "param": {
            "action": method,
            "uri": uri,
            "initiator": rng.choice(("USER", "SYSTEM")),
            "sourceService": service,
        },
        "resources": [{"type": resource, "id": target, "action": [_VERBS[method]]}],
    }
    if path.startswith("datacenters/") and rng.random() < 0.3:
        event["resources"].append({"type": "datacenter", "id": parent, "action": ["UPDATE"]})
    if kind in ("Error", "RequestFailed"):
        status, code, message = rng.choice(_ERRORS)
        event["param"]["errorCode"] = code
        event["param"]["error"] = {
            "httpStatus": status,
            "messages": [{"errorCode": code, "message": message}],
        }
    elif rng.random() < 0.1:
        del event["message"]
    return event


def _make_template(rng: random.Random, kind: str) -> _Template:
    identity = {"username": f"{rng.choice(_USERS)}@c~N~.example", "contractNumber": "~N~"}
    principal: dict[str, Any] = {
        "sourceIP": f"{rng.choice(_NETWORKS)}{rng.randrange(1, 255)}",
        "sourceService": rng.choice(_SERVICES),
        "serviceHost": rng.choice(_HOSTS),
        "identity": identity,
    }
    if rng.random() < 0.05:
        del principal["sourceIP"]
    id_prefix = _uuid_prefix(rng)
    entry = {
        "@uuid": f"{id_prefix}~K~",
        "meta": {
            "time": "~T~",
            "requestId": f"{_uuid_prefix(rng)}~K~",
            **({"queueRefId": _uuid(rng)} if kind in ("RequestAccepted", "Provision") else {}),
            "transactionId": f"{_uuid_prefix(rng)}~K~",
            "auditVersion": "1" if rng.random() < 0.3 else 1,
        },
        "principal": principal,
        "event": _event(rng, kind),
    }
    # Both are JSON, and the real thing has both: raw and escaped letters beyond ASCII.
    text = json.dumps(entry, ensure_ascii=rng.random() < 0.3, separators=(",", ":"))
    if rng.random() < 0.5:
        text = text.replace('"contractNumber":"~N~"', '"contractNumber":~N~')
    pieces = tuple(piece.encode() for piece in re.split("~[KTN]~", text))
    return _Template(id_prefix.encode(), pieces)


@lru_cache(maxsize=4)
def _templates(seed: int) -> tuple[_Template, ...]:
    rng = random.Random(seed)
    kinds = [kind for kind, share in _TYPES for _ in range(share * _POOL_SIZE // 1000)]
    rng.shuffle(kinds)
    return tuple(_make_template(rng, kind) for kind in kinds)


@lru_cache(maxsize=4096)
def _minute_text(minute: int) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:", time.gmtime(minute * 60)).encode()


_SECONDS = tuple(b"%02d." % second for second in range(60))
_MILLISECONDS = tuple(b"%03dZ" % ms for ms in range(1000))


class EntryMaker:
    """Renders the entries of one contract. `pad_to_bytes` makes each entry at least that long."""

    def __init__(self, seed: int, contract: int, *, with_uuid: bool = True, pad_to_bytes: int = 0) -> None:
        digest = hashlib.blake2b(b"%d:%d" % (seed, contract), digest_size=6).digest()
        self.salt = int.from_bytes(digest, "big")
        self._templates = _templates(seed)
        self._contract = b"%d" % contract
        self._with_uuid = with_uuid
        self._pad_to_bytes = pad_to_bytes
        self._is_special = not with_uuid or pad_to_bytes > 0

    def render(self, index: int, time_ms: int) -> bytes:
        """Entry `index` as compact JSON, stamped `time_ms`."""
        return b"".join(self.pieces(index, time_ms))

    def pieces(self, index: int, time_ms: int) -> tuple[bytes, ...]:
        """The same in pieces, for a page to join at once.

        This is the hot spot: joining pieces that exist already is twice as fast as joining a thousand bodies.
        """
        number = (index * _STEP + self.salt) & _KEY_MASK
        number ^= number >> 23
        key, contract = hexlify(number.to_bytes(6, "big")), self._contract
        p0, p1, p2, p3, p4, p5, p6 = self._templates[number % _POOL_SIZE].pieces
        minute, ms = divmod(time_ms, 60_000)
        second, ms = divmod(ms, 1000)
        day, rest, end = _minute_text(minute), _SECONDS[second], _MILLISECONDS[ms]
        pieces = (p0, key, p1, day, rest, end, p2, key, p3, key, p4, contract, p5, contract, p6)
        return (self._reshape(b"".join(pieces)),) if self._is_special else pieces

    def _reshape(self, body: bytes) -> bytes:
        if not self._with_uuid:
            body = b"{" + body[_UUID_END:]
        missing = self._pad_to_bytes - len(body) - len(',"padding":""')
        return body if missing < 0 else b'%s,"padding":"%s"}' % (body[:-1], b"x" * missing)

    def id_of(self, index: int) -> bytes:
        """The UUID of entry `index`, also where its body does not carry it."""
        number = (index * _STEP + self.salt) & _KEY_MASK
        number ^= number >> 23
        return self._templates[number % _POOL_SIZE].id_prefix + hexlify(number.to_bytes(6, "big"))
