"""Invented but realistic Activity Log entries, fast to render: entry i of a contract is a pure function of
(seed, contract, i), and of the time that the log gives it.

A pool of lives is made once, for all seeds. A life is the six entries that one request leaves in the log, from RequestAccepted
on: they have one user and mostly one resource, and each is a template. An entry is a template, filled with its time, its
contract and the key of its life. Nothing is stored per entry. All names and addresses are from ranges reserved for
documentation.

Source: docs/facts.md, "IONOS Activity Log API": shape of an entry, event types and their proportions.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from binascii import hexlify
from collections.abc import Callable
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

_POOL_SIZE = 167  # lives
_LIFE_ENTRIES = 6
_LIFE_SPREAD = 7  # how many lives begin between two entries of one life
_WHOLE_SECOND_EVERY = 32  # about one in this many entries has a time without a fraction
_KEY_MASK = (1 << 48) - 1
_UUID_END = len('{"@uuid":"') + 36 + len('",')
_STEP = 0x9E3779B97F4B  # odd, so that i -> i * _STEP mod 2**48 never gives the same key twice

_UPDATE = "RequestStatusUpdate"
# The types of a life's entries, in order. The last entry often belongs to another request, without other entries.
_TYPES = ("RequestAccepted", _UPDATE, _UPDATE, "Provision", _UPDATE)
_LAST_TYPES = (
    (_UPDATE, 24),
    ("GenerateToken", 33),
    ("RequestFailed", 25),
    ("Error", 13),
    ("DCDUserEvent", 3),
    ("ContractNotice", 2),  # an undocumented type
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
_SERVICES = ("DCD", "PUBLIC_REST", "PUBLIC_REST_V6", "Provisioning", "Reseller_V1")
_SERVICE_WEIGHTS = (30, 15, 30, 20, 5)
_HOSTS = ("dcd-fra-1.example.net", "api-fra-2.example.net", "api-txl-1.example.net", "prov-txl-3.example.net")
_NETWORKS = ("192.0.2.", "198.51.100.", "203.0.113.", "2001:db8:51::")
_RESOURCES = (  # type, path, and the prefix of dotted actions
    ("datacenter", "datacenters", "vr.datacenter"),
    ("server", "datacenters/{parent}/servers", "vr.server"),
    ("volume", "datacenters/{parent}/volumes", "st.volume"),
    ("nic", "datacenters/{parent}/servers/{id}/nics", "vr.nic"),
    ("firewallrule", "datacenters/{parent}/servers/{id}/nics/{parent}/firewallrules", "vr.firewall"),
    ("lan", "datacenters/{parent}/lans", "vr.lan"),
    ("snapshot", "snapshots", "sn.snapshot"),
    ("ipblock", "ipblocks", "ip.ipblock"),
    ("k8s-cluster", "k8s", "k8s.cluster"),
    ("backupUnit", "backupunits", "bu.unit"),
    ("user", "um/users", "sec.user"),
    ("group", "um/groups", "sec.group"),
)
_VERBS = {"GET": "read", "POST": "create", "PUT": "update", "PATCH": "update", "DELETE": "delete"}
_SPECIAL_VERBS = {"ip.ipblock.create": "ip.ipblock.reserve", "vr.firewall.update": "vr.firewall.activate"}
_ERRORS = (
    (422, "100", '[(root).properties.cores] The attribute "cores" must be between 1 and 62'),
    (404, "309", "Resource does not exist"),
    (423, "331", "The virtual data center is locked by another provisioning request"),
    (503, "2000", "Kapazität in dieser Zone erschöpft, bitte später erneut versuchen"),
    (403, "315", "The user lacks the privilege to perform this action"),
)


class _Template(NamedTuple):
    id_prefix: bytes  # together with the key of the life: the entry's UUID
    pieces: tuple[bytes, ...]  # the constant text between the filled-in values
    # from `pieces`, followed by the values of `_SLOTS`, to the entry's pieces in order
    arrange: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]


# The filled-in values: the key of the life, the time in three pieces, the end of the life's queue id, the contract.
_SLOTS = {"K": (0,), "T": (1, 2, 3), "Q": (4,), "N": (5,)}
_QUEUE_ENDS = tuple(b"%04d" % number for number in range(10_000))


def _uuid_prefix(rng: random.Random, version: int = 4) -> str:
    first, second, third, fourth = (rng.getrandbits(bits) for bits in (32, 16, 12, 12))
    return f"{first:08x}-{second:04x}-{version}{third:03x}-9{fourth:03x}-"


def _uuid(rng: random.Random) -> str:
    return f"{_uuid_prefix(rng)}{rng.getrandbits(48):012x}"


class _Life(NamedTuple):
    """The values that all entries of a request have in common."""

    user: str
    address: str
    service: str
    initiator: str
    method: str
    resource: str
    resource_id: str
    action: str
    uri: str
    parent: str
    request: str
    queue: int


def _make_life(rng: random.Random) -> _Life:
    resource, path, prefix = rng.choice(_RESOURCES)
    method = rng.choices(tuple(_VERBS), (25, 35, 15, 15, 10))[0]
    service = rng.choices(_SERVICES, _SERVICE_WEIGHTS)[0]
    parent = _uuid(rng)
    is_numbered = prefix.startswith("sec.") and rng.random() < 0.5
    target = str(rng.randrange(1000, 99_999)) if is_numbered else _uuid(rng)
    uri = f"/cloudapi/v6/{path.format(parent=parent, id=_uuid(rng))}"
    action = f"{prefix}.{_VERBS[method]}"
    return _Life(
        user=rng.choice(_USERS),
        address=f"{rng.choice(_NETWORKS)}{rng.randrange(1, 255)}",
        service=service,
        initiator=service if rng.random() < 0.9 else rng.choice(_SERVICES),
        method=method,
        resource=resource,
        resource_id=target,
        action=_SPECIAL_VERBS.get(action, action),
        uri=uri if method == "POST" else f"{uri}/{target}",
        parent=parent if path.startswith("datacenters/") else "",
        request=_uuid_prefix(rng),
        queue=rng.randrange(1, 200_000),
    )


def _token_event(rng: random.Random, life: _Life) -> dict[str, Any]:
    return {
        "type": "GenerateToken",
        "status": "DONE",
        "message": "Token generated for the interactive session of the user; it expires after one hour",
        "param": {
            "action": "GET",
            "uri": "/auth/v1/tokens/generate",
            "initiator": life.initiator,
            "sourceService": life.service,
        },
        "resources": [{"type": "token", "id": _uuid(rng), "action": ["sec.token.create"]}],
    }


def _event(rng: random.Random, kind: str, life: _Life) -> dict[str, Any]:
    """The `event` of one entry: what was done to which resource, and the result."""
    if kind == "GenerateToken":
        return _token_event(rng, life)
    if kind == "DCDUserEvent":
        return {"type": kind, "param": {}, "resources": []}
    status = {"RequestAccepted": "QUEUED", "Error": "FAILED", "RequestFailed": "FAILED"}
    event: dict[str, Any] = {
        "type": kind,
        "status": status.get(kind, rng.choice(("RUNNING", "DONE", "DONE"))),
        "message": f"{life.method} {life.resource} in “{rng.choice(('Prod', 'Test', 'Büro'))}”",
        "param": {
            "action": life.method,
            "uri": life.uri,
            "initiator": life.initiator,
            "sourceService": life.service,
        },
        "resources": [{"type": life.resource, "id": life.resource_id, "action": [life.action]}],
    }
    resources, param = event["resources"], event["param"]
    if life.parent and rng.random() < 0.3:
        resources.append({"type": "datacenter", "id": life.parent, "action": ["vr.datacenter.update"]})
    if rng.random() < 0.05:
        resources[-1]["action"] = rng.choice(([], [life.action, "sn.snapshot.create"]))
    if rng.random() < 0.03:
        param["action"] = "http"
        del param["uri"]
    if kind in ("Error", "RequestFailed"):
        code, text, message = rng.choice(_ERRORS)
        param["errorCode"] = text
        param["error"] = {"httpStatus": code, "messages": [{"errorCode": text, "message": message}]}
    elif rng.random() < 0.1:
        del event["message"]
    elif rng.random() < 0.02:
        event["param"] = {}
    return event


def _principal(rng: random.Random, life: _Life) -> dict[str, Any]:
    """The `principal` of one entry. Any part of it may be missing."""
    principal: dict[str, Any] = {
        "sourceIP": life.address,
        "sourceService": life.service,
        "serviceHost": rng.choice(_HOSTS),
        "identity": {"username": f"{life.user}@c~N~.example", "contractNumber": "~N~"},
    }
    dice = rng.random()
    if dice < 0.05:
        del principal["sourceIP"]
    elif dice < 0.08:
        principal["serviceHost"] = ""
    elif dice < 0.10:
        del principal["serviceHost"]
    elif dice < 0.11:
        principal["identity"] = {}
    elif dice < 0.12:
        return {}
    return principal


def _make_template(rng: random.Random, kind: str, life: _Life) -> _Template:
    id_prefix = _uuid_prefix(rng, version=1 if rng.random() < 0.04 else 4)
    is_bare = rng.random() < (0.5 if kind == "DCDUserEvent" else 0.01)
    is_requested = kind in ("RequestAccepted", _UPDATE, "Provision", "RequestFailed")
    is_queued = is_requested and life.method != "GET"
    meta = {
        "time": "~T~",
        **({"requestId": f"{life.request}~K~" if is_requested else f"{_uuid_prefix(rng)}~K~"} if not is_bare else {}),
        **({"queueRefId": f"~-{life.queue}~Q~"} if is_queued and not is_bare else {}),
        **({"transactionId": f"{_uuid_prefix(rng)}~K~"} if not is_bare else {}),
        "auditVersion": rng.choice((0.1, 0.1, "0.1", 1)),
    }
    entry: dict[str, Any] = {
        "@uuid": f"{id_prefix}~K~",
        "meta": meta,
        "principal": _principal(rng, life),
        "event": _event(rng, kind, life),
    }
    if rng.random() < 0.005:
        del entry["principal"]
    # Both forms are JSON, and the real API uses both: raw and escaped letters beyond ASCII.
    text = json.dumps(entry, ensure_ascii=rng.random() < 0.3, separators=(",", ":"))
    text = re.sub('"~-([0-9]+~Q~)"', r"\1", text)  # the queue id is a number
    if rng.random() < 0.5:
        text = text.replace('"contractNumber":"~N~"', '"contractNumber":~N~')
    pieces = tuple(piece.encode() for piece in re.split("~[KTQN]~", text))
    order = [0]
    for number, slot in enumerate(re.findall("~([KTQN])~", text), 1):
        order += [*(len(pieces) + place for place in _SLOTS[slot]), number]
    arrange: Any = itemgetter(*order)
    return _Template(id_prefix.encode(), pieces, arrange)


@cache
def _lives() -> tuple[tuple[_Template, ...], ...]:
    """The templates of each life's entries. They are slow to make, and serve all seeds: only ids and order depend on the seed."""
    rng = random.Random(1)
    names, weights = zip(*_LAST_TYPES, strict=True)
    lasts = [name for name, weight in _LAST_TYPES for _ in range(round(_POOL_SIZE * weight / sum(weights)))]
    lasts = (lasts + [names[0]] * _POOL_SIZE)[:_POOL_SIZE]
    rng.shuffle(lasts)
    lives = [(_make_life(rng), last) for last in lasts]
    return tuple(tuple(_make_template(rng, kind, life) for kind in (*_TYPES, last)) for life, last in lives)


@lru_cache(maxsize=4096)
def _minute_text(minute: int) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:", time.gmtime(minute * 60)).encode()


_SECONDS = tuple(b"%02d." % second for second in range(60))
_WHOLE_SECONDS = tuple(b"%02dZ" % second for second in range(60))
_MILLISECONDS = tuple(b"%03dZ" % ms for ms in range(1000))


def is_whole_second(index: int) -> bool:
    """Whether entry `index` has a time without a fraction if the log gives it a whole second."""
    return index % _WHOLE_SECOND_EVERY == 0


class EntryMaker:
    """Renders the entries of one contract. `pad_to_bytes` makes each entry at least this long."""

    def __init__(self, seed: int, contract: int, *, with_uuid: bool = True, pad_to_bytes: int = 0) -> None:
        digest = hashlib.blake2b(b"%d:%d" % (seed, contract), digest_size=6).digest()
        self.salt = int.from_bytes(digest, "big")
        self._lives = _lives()
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
        template, life = self._template(index)
        key, queue = hexlify(life.to_bytes(6, "big")), _QUEUE_ENDS[life % 10_000]
        minute, ms = divmod(time_ms, 60_000)
        second, ms = divmod(ms, 1000)
        day, rest, end = _minute_text(minute), _SECONDS[second], _MILLISECONDS[ms]
        if not ms and is_whole_second(index):
            rest, end = _WHOLE_SECONDS[second], b""
        pieces = template.arrange((*template.pieces, key, day, rest, end, queue, self._contract))
        return (self._reshape(b"".join(pieces)),) if self._is_special else pieces

    def _template(self, index: int) -> tuple[_Template, int]:
        """The template of entry `index`, and the number of its life, which is unique.

        Six entries in a row belong to six lives, each at another stage, so that requests overlap as in a real log.
        """
        begun, place = divmod(index, _LIFE_ENTRIES)
        life = ((begun - place * _LIFE_SPREAD) * _STEP + self.salt) & _KEY_MASK
        life ^= life >> 23
        return self._lives[life % _POOL_SIZE][place], life

    def _reshape(self, body: bytes) -> bytes:
        if not self._with_uuid:
            body = b"{" + body[_UUID_END:]
        missing = self._pad_to_bytes - len(body) - len(',"padding":""')
        return body if missing < 0 else b'%s,"padding":"%s"}' % (body[:-1], b"x" * missing)

    def id_of(self, index: int) -> bytes:
        """The UUID of entry `index`, even if its body does not have it."""
        template, life = self._template(index)
        return template.id_prefix + hexlify(life.to_bytes(6, "big"))
