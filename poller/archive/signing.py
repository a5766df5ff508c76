"""Ed25519 keys: creates, reads, signs, verifies. Only this module uses the library for it, and imports it when needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from poller.config.installed import needed
from poller.config.trust import read_trusted
from poller.core.errors import ConfigError, FileProblem, Problem
from poller.core.evidence.digest import DigestError, decode_key, encode_key

_MAX_KEY_BYTES = 64 * 1024


class Signer:
    """A private key. `key` is its public half, as written in digests."""

    def __init__(self, private: Any) -> None:
        self._private = private
        self.key = encode_key(private.public_key().public_bytes_raw())

    def sign(self, content: bytes) -> bytes:
        """The signature: 64 bytes."""
        signature: bytes = self._private.sign(content)
        return signature

    def __repr__(self) -> str:
        return "<Signer>"


def new_key() -> tuple[bytes, bytes]:
    """A new key: private (PKCS 8) and public, both as PEM.  Raises: ConfigError if the library is missing."""
    library = _library()
    private = library.ed25519.Ed25519PrivateKey.generate()
    serialization = library.serialization
    pem = serialization.Encoding.PEM
    return (
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def read_signer(path: Path, key: str) -> Signer:
    """The private key in a file, which the configuration names under `key`.  Raises: ConfigError."""
    library = _library()
    try:
        content, _, refusal = read_trusted(path, _MAX_KEY_BYTES, is_secret=True)
    except OSError as error:
        hint = "make one with `ionos-poller archive keygen`"
        raise ConfigError([FileProblem(key, f"{path} cannot be read: {error.strerror}", hint)]) from error
    if refusal is not None:
        raise ConfigError([Problem(key, *refusal)])
    try:
        private = library.serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError, library.unsupported):
        private = None
    if not isinstance(private, library.ed25519.Ed25519PrivateKey):
        hint = "make one with `ionos-poller archive keygen`"
        # `from None`: the cause could carry a part of the key.
        raise ConfigError([Problem(key, f"{path} holds no Ed25519 private key", hint)]) from None
    return Signer(private)


def read_public_key(path: Path) -> str:
    """The public key in a PEM file, or the public half of its private key, as written in digests.  Raises: ConfigError."""
    library = _library()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {error.strerror}", "check --public-key")]) from error
    try:
        if b"PRIVATE KEY" in content:
            public = library.serialization.load_pem_private_key(content, None).public_key()
        else:
            public = library.serialization.load_pem_public_key(content)
    except (ValueError, TypeError, library.unsupported):
        public = None
    if not isinstance(public, library.ed25519.Ed25519PublicKey):
        hint = "give the .pub file that `ionos-poller archive keygen` wrote"
        raise ConfigError([Problem(str(path), "holds no Ed25519 public key", hint)]) from None
    return encode_key(public.public_bytes_raw())


def is_signed_by(key: str, content: bytes, signature: bytes) -> bool:
    """Whether this key, as written in digests, made the signature.  Raises: ConfigError if the library is missing."""
    library = _library()
    try:
        library.ed25519.Ed25519PublicKey.from_public_bytes(decode_key(key)).verify(signature, content)
    except (library.invalid, DigestError):
        return False
    return True


class _Library:
    def __init__(self) -> None:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519

        self.serialization, self.ed25519 = serialization, ed25519
        self.invalid, self.unsupported = InvalidSignature, UnsupportedAlgorithm


def _library() -> _Library:
    with needed("archive", "extras", "signing needs cryptography, which is not installed"):
        return _Library()
