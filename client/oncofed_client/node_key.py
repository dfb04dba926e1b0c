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

__all__ = ["NODE_KEY_FILE", "node_public", "read_node_key"]

NODE_KEY_FILE = "node.key"


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


def read_node_key(state: Path) -> EllipticCurvePrivateKey:
    """The gate's key that is there.

    Raises:
        DataError: it is not such a key, or others may read it.
        StorageError: it cannot be read.
    """
    path = state / NODE_KEY_FILE
    content = read_secret(path)
    try:
        key = load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise DataError(f"{path}: is not a gate's key (ECDSA P-384, OpenSSH form), or it is damaged; enrol anew")
    return key
