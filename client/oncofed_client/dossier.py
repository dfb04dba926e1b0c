"""A dossier: one page for an outsider, with everything it says as signed data inside it.

The page's text is bound to the data: the signed body has the SHA-256 of the page without its data. So whoever has the file and
knows the site's fingerprint can check that nothing of either was changed, with this program or without it (docs/site.md).
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from oncofed_client.words import day, epsilon_text
from oncofed_shared.errors import DataError
from oncofed_shared.public_keys import key_fingerprint
from oncofed_shared.signed_document import SignedDocument, read_document, sign_document

__all__ = ["DOSSIER_KIND", "make_dossier", "open_dossier"]

DOSSIER_KIND = "dossier"
_START, _END = b'<script type="application/json" id="oncofed-dossier">', b"</script>"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("oncofed_client"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["day"] = day
    environment.filters["epsilon"] = lambda value: "no bound" if value is None else epsilon_text(value)
    environment.filters["fingerprint"] = lambda text: key_fingerprint(bytes.fromhex(text))
    return environment.get_template("dossier.html.j2")


def make_dossier(body: dict[str, Any], key: Ed25519PrivateKey) -> tuple[bytes, bytes]:
    """The page and, by itself, its signed data.

    Args:
        body: of `dossier_body`.
        key: the site's identity.

    Guarantees:
        - The page loads nothing and runs nothing; what people wrote stands in it as text.
        - One bit changed in the page or in its data: `open_dossier` refuses it.
    """
    page = _template().render(body).encode()
    signed = sign_document(DOSSIER_KIND, body | {"page": hashlib.sha256(page).hexdigest()}, key)
    # A text in JSON cannot end the element: its only sign that could is written as a number.
    data = signed.replace(b"<", b"\\u003c")
    return page.replace(_START, _START + data, 1), signed


def open_dossier(content: bytes, *, signer: bytes | None, where: str = "dossier") -> SignedDocument:
    """Read a dossier, the page or its data alone, and check it.

    Args:
        signer: raw key of the site; None takes any, and the caller decides.
        where: the file's name, for messages.

    Raises:
        DataError: code `document` for something else; code `signature` where page or data were changed.
    """
    if not content.lstrip().startswith(b"<"):
        return read_document(content, DOSSIER_KIND, signer=signer, where=where)
    before, start, rest = content.partition(_START)
    data, end, after = rest.partition(_END)
    if not start or not end or _START in after:
        raise DataError(f"{where}: is not a dossier's page, or it is damaged", code="document")
    document = read_document(data, DOSSIER_KIND, signer=signer, where=where)
    if hashlib.sha256(before + start + end + after).hexdigest() != document.body.get("page"):
        raise DataError(
            f"{where}: the page does not belong to the data in it: its text was changed; ask the site for it again",
            code="signature",
        )
    return document
