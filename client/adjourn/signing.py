"""The keys that sign payloads and check them: HMAC-SHA-256 under a shared secret, each key with an id for rotation."""

from __future__ import annotations

import binascii
import hmac
import re
from base64 import b64decode
from typing import TYPE_CHECKING, Final

from adjourn.errors import ConfigError, PayloadSignatureError

if TYPE_CHECKING:
    from collections.abc import Iterable

SIGNATURE_BYTES: Final = 32

# Below this a secret can be guessed; `openssl rand -hex 32` gives twice as much.
SECRET_BYTES_MIN: Final = 16

_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")


class SigningKeys:
    """Named secrets. The first signs; all of them verify, so that a new key can be brought in before the old one goes.

    Immutable. Its `repr` shows the ids only.

    Raises: ConfigError if there is no key, an id is malformed or given twice, or a secret is shorter than 16 bytes."""

    __slots__ = ("_secrets", "signing_id")

    def __init__(self, keys: Iterable[tuple[str, bytes]]) -> None:
        secrets: dict[str, bytes] = {}
        for key_id, secret in keys:
            if not _KEY_ID.fullmatch(key_id):
                raise ConfigError(f"signing key id {key_id!r} must have 1 to 64 characters of A-Z a-z 0-9 . _ -")
            if key_id in secrets:
                raise ConfigError(f"signing key id {key_id!r} is given twice")
            if len(secret) < SECRET_BYTES_MIN:
                raise ConfigError(
                    f"the secret of signing key {key_id!r} has {len(secret)} bytes and needs at least "
                    f"{SECRET_BYTES_MIN}; make one with `openssl rand -hex 32`"
                )
            secrets[key_id] = bytes(secret)
        if not secrets:
            raise ConfigError("no signing key is given; leave ADJOURN_SIGNING_KEYS unset to work without signatures")
        self._secrets = secrets
        self.signing_id: Final = next(iter(secrets))

    @classmethod
    def parse(cls, text: str) -> SigningKeys:
        """Read `id:secret,id:secret`. A secret of an even number of hex digits is hex, any other is base64 (either
        alphabet, padding optional).

        Raises: ConfigError; the message never holds a secret."""
        keys = []
        for number, item in enumerate(filter(None, map(str.strip, text.split(","))), 1):
            key_id, colon, secret = item.partition(":")
            if not colon:
                raise ConfigError(f"signing key {number} must be written as id:secret")
            keys.append((key_id.strip(), _secret_bytes(key_id.strip(), secret.strip())))
        return cls(keys)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, the signing one first."""
        return tuple(self._secrets)

    def sign(self, message: bytes) -> bytes:
        """Return the signature of `message` under the first key."""
        return hmac.digest(self._secrets[self.signing_id], message, "sha256")

    def verify(self, key_id: str, message: bytes, signature: bytes) -> None:
        """Return if `signature` is right.

        Raises: PayloadSignatureError if it is not or the key is not among these."""
        secret = self._secrets.get(key_id)
        if secret is None:
            raise PayloadSignatureError(
                f"payload is signed with key {key_id!r}; ADJOURN_SIGNING_KEYS has only {', '.join(self.ids)} here"
            )
        if not hmac.compare_digest(hmac.digest(secret, message, "sha256"), signature):
            raise PayloadSignatureError(
                f"signature of the payload does not match key {key_id!r}: it was altered, or the secrets differ"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SigningKeys) and list(self._secrets.items()) == list(other._secrets.items())

    def __hash__(self) -> int:
        return hash(tuple(self._secrets.items()))

    def __repr__(self) -> str:
        return f"SigningKeys({', '.join(f'{key_id}:***' for key_id in self._secrets)})"


def _secret_bytes(key_id: str, secret: str) -> bytes:
    if _HEX.fullmatch(secret):
        return bytes.fromhex(secret)
    standard = secret.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except binascii.Error as error:
        raise ConfigError(f"the secret of signing key {key_id!r} is neither hex nor base64") from error
