"""The key with which a site's gate shows itself to the SuperLink: ECDSA on P-384, in the form of OpenSSH, as Flower reads it.

It opens a connection and signs nothing of a study: messages are signed by the site's identity, which the gate does not have.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from oncofed_client.private_file import make_once, read_secret
from oncofed_shared.errors import DataError

__all__ = ["NODE_KEY_FILE", "next_node_public", "node_public", "read_node_key", "take_next_node"]

NODE_KEY_FILE, NEXT_NODE_KEY = "node.key", "node.next.key"


def node_public(state: Path) -> str:
    """The public half of a site's gate key, one line of OpenSSH text without a comment; the key is made when there is none.

    Guarantees:
        - Made once, and readable by its owner alone.

    Raises:
        DataError: the file is not such a key, or others may read it.
        StorageError: the folder cannot be written.
    """
    path = state / NODE_KEY_FILE
    if not os.path.lexists(path):
        made = generate_private_key(SECP384R1())
        make_once(path, made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = read_node_key(state).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def next_node_public(state: Path) -> str:
    """The public half of the key that is to take the gate's key's place; the same one until it has done so."""
    made = generate_private_key(SECP384R1())
    make_once(state / NEXT_NODE_KEY, made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = read_node_key(state, NEXT_NODE_KEY).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def take_next_node(state: Path) -> None:
    """Let the gate's next key be its key; a gate that runs goes on with the one before until it is started again."""
    if (state / NEXT_NODE_KEY).exists():
        (state / NEXT_NODE_KEY).replace(state / NODE_KEY_FILE)


def read_node_key(state: Path, name: str = NODE_KEY_FILE) -> EllipticCurvePrivateKey:
    """The gate's key that is there.

    Raises:
        DataError: it is not such a key, or others may read it.
        StorageError: it cannot be read.
    """
    path = state / name
    content = read_secret(path)
    try:
        key = load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise DataError(f"{path}: is not a gate's key (ECDSA P-384, OpenSSH form), or it is damaged; enrol anew")
    return key
