"""Signatures of packages: ed25519 over the SHA-256 of every file, in signature.json.

A signature covers the settings, the handler and the whole artifact. Keys are PEM files:

    openssl genpkey -algorithm ed25519 -out private.pem
    openssl pkey -in private.pem -pubout -out public.pem
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from neuron_sum import files
from neuron_sum.contents import list_files
from neuron_sum.errors import ArtifactError, MissingExtraError
from neuron_sum.recipes.schema import Section

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FILE = "signature.json"
MAX_KEY_BYTES = 1 << 16
PRIVATE_HINT = "create one with `openssl genpkey -algorithm ed25519 -out private.pem`"
PUBLIC_HINT = "create one with `openssl pkey -in private.pem -pubout -out public.pem`"
UNTRUSTED_HINT = "use a package that the owner of the key signed with `neuron-sum package --sign`"


class Signature(Section):
    """The content of signature.json."""

    format_version: Literal[1] = 1
    files: dict[str, str]
    """Relative path -> SHA-256 of every other file of the package."""
    signature: str
    """Base64 of the signature."""


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """The ed25519 private key in a PEM file.

    Raises:
        ArtifactError: If the file is not such a key.
        MissingExtraError: If the package cryptography is not installed.
    """
    key = _read_key(path, private=True)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not isinstance(key, Ed25519PrivateKey):
        raise ArtifactError(f"{path} is not an ed25519 private key but {type(key).__name__}", PRIVATE_HINT)
    return key


def read_public_key(path: Path) -> "Ed25519PublicKey":
    """The ed25519 public key in a PEM file.

    Raises:
        ArtifactError: If the file is not such a key.
        MissingExtraError: If the package cryptography is not installed.
    """
    key = _read_key(path, private=False)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not isinstance(key, Ed25519PublicKey):
        raise ArtifactError(f"{path} is not an ed25519 public key but {type(key).__name__}", PUBLIC_HINT)
    return key


def sign(hashes: Mapping[str, str], key: "Ed25519PrivateKey") -> str:
    """The text of signature.json.

    Args:
        hashes: Relative path and SHA-256 of every file of the package.
        key: The private key.
    """
    signature = base64.b64encode(key.sign(_statement(hashes))).decode()
    content = Signature(files=dict(sorted(hashes.items())), signature=signature)
    return json.dumps(content.model_dump(), indent=2, ensure_ascii=False) + "\n"


def verify(folder: Path, key: "Ed25519PublicKey", package: Path) -> None:
    """Checks that a package was signed with the private key of `key`, and not changed since.

    Args:
        folder: The folder of the package.
        key: The public key.
        package: The package, for messages.

    Raises:
        ArtifactError: If the signature is missing or invalid, or a file was added, removed or changed.
    """
    from cryptography.exceptions import InvalidSignature

    if not (folder / FILE).is_file():
        raise ArtifactError(f"{package} is not signed: it does not contain {FILE}", UNTRUSTED_HINT)
    try:
        stored = Signature.model_validate(files.read_json(folder / FILE, ArtifactError, UNTRUSTED_HINT))
        key.verify(base64.b64decode(stored.signature, validate=True), _statement(stored.files))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{package}: {FILE}: {field}: {first['msg']}", UNTRUSTED_HINT) from error
    except (InvalidSignature, ValueError) as error:
        raise ArtifactError(f"the signature of {package} was not made with this key", UNTRUSTED_HINT) from error
    found = {name for name in list_files(folder, ArtifactError) if name != FILE}
    for name in sorted(found.symmetric_difference(stored.files)):
        state = "was added after the package was signed" if name in found else "is missing"
        raise ArtifactError(f"{package}: {name[:200]!r} {state}", UNTRUSTED_HINT)
    for name, expected in stored.files.items():
        if files.sha256(folder / name) != expected:
            raise ArtifactError(f"{package}: {name!r} was changed after the package was signed", UNTRUSTED_HINT)


def fingerprint(key: "Ed25519PublicKey") -> str:
    """The first half of the SHA-256 of a public key, in hexadecimal."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:32]


def _statement(hashes: Mapping[str, str]) -> bytes:
    return b"neuron-sum package 1\n" + json.dumps(hashes, sort_keys=True).encode()


def _read_key(path: Path, *, private: bool) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ModuleNotFoundError as error:
        raise MissingExtraError("cryptography", "signing") from error
    hint, kind = (PRIVATE_HINT, "private") if private else (PUBLIC_HINT, "public")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEY_BYTES)
        return load_pem_private_key(content, None) if private else load_pem_public_key(content)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = error.strerror if isinstance(error, OSError) else "it must be an unencrypted PEM file"
        raise ArtifactError(f"{path} cannot be read as an ed25519 {kind} key: {reason}", hint) from error
