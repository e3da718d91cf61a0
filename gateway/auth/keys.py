"""Keys: what the signature of a JWT is verified with, and by which algorithms each may be.

An algorithm is chosen by the key, never by the token alone: a public key is no secret (RFC 8725
§3.1), and whoever has it could sign with it as one.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt import PyJWK, PyJWTError

OF_SECRETS = ("HS256", "HS384", "HS512")
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EDWARDS = ("EdDSA",)
_CURVES = {"secp256r1": "ES256", "secp256k1": "ES256K", "secp384r1": "ES384", "secp521r1": "ES512"}
OF_PUBLIC_KEYS = (*_RSA, *_CURVES.values(), *_EDWARDS)

_MOST = 100  # Keys of one set.
_BEGIN = b"-----BEGIN "

_ODD = (
    *(PyJWTError, UnsupportedAlgorithm, NotImplementedError),
    *(ValueError, TypeError, LookupError, AttributeError),
)


class Key(NamedTuple):
    """One key, the name it has, and the algorithms it is for."""

    kid: str | None
    key: Any
    algorithms: Sequence[str]


def of_secrets(secrets: Sequence[str]) -> list[Key]:
    """Return secrets as keys."""
    return [Key(None, secret.encode(), OF_SECRETS) for secret in secrets]


def of_file(content: bytes) -> list[Key]:
    """Return the public keys or certificates of a file, one or more; raises ValueError."""
    blocks = [_BEGIN + each for each in content.split(_BEGIN)[1:]]
    if not blocks:
        return of_set(content)
    return [_of_pem(block) for block in blocks]


def of_set(content: bytes) -> list[Key]:
    """Return the public keys of a JWK set in JSON; raises ValueError if there is none."""
    try:
        told = json.loads(content)
    except RecursionError:
        raise ValueError("it is no JSON") from None
    listed = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(listed, list):
        raise ValueError('it is no JWK set: an object with a list of "keys"')
    found = [key for each in listed[:_MOST] if (key := _of_jwk(each)) is not None]
    if not found:
        raise ValueError("it has no public key that can be used")
    return found


def _of_pem(block: bytes) -> Key:
    if b"PRIVATE KEY" in block.partition(b"\n")[0]:
        raise ValueError("it is a private key: only who makes tokens may have it")
    try:
        if block.startswith(_BEGIN + b"CERTIFICATE"):
            key: Any = load_pem_x509_certificate(block).public_key()
        else:
            key = load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it is no public key in PEM") from None
    algorithms = _algorithms(key)
    if not algorithms:
        raise ValueError("it is a key of a kind that no JWT is signed with")
    return Key(None, key, algorithms)


def _of_jwk(told: Any) -> Key | None:
    """Return a key of a set, None for one that is no public key for signatures."""
    if not isinstance(told, dict) or told.get("use", "sig") != "sig" or "d" in told:
        return None
    try:
        key = PyJWK(told).key
        algorithms: Sequence[str] = _algorithms(key)
    except _ODD:
        return None
    kid, bound = told.get("kid"), told.get("alg")
    if bound is not None:
        algorithms = [each for each in algorithms if each == bound]
    return Key(kid if isinstance(kid, str) else None, key, algorithms) if algorithms else None


def _algorithms(key: Any) -> Sequence[str]:
    if isinstance(key, rsa.RSAPublicKey):
        return _RSA
    if isinstance(key, ec.EllipticCurvePublicKey):
        return [_CURVES[key.curve.name]] if key.curve.name in _CURVES else []
    return _EDWARDS if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey) else []
