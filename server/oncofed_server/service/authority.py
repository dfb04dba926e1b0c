"""A private certificate authority: one for the aggregator alone, so that no public one can make another aggregator of somebody.

Its certificate goes to the sites with their enrolment; SuperNodes trust it and nobody else. It signs two certificates: one with the
public name, which the proxy shows, and one for 127.0.0.1, which the SuperLink behind it shows.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from oncofed_server.service.keys import write_secret
from oncofed_shared.errors import DataError
from oncofed_shared.storage import write_whole

__all__ = [
    "AUTHORITY_YEARS",
    "SERVER_DAYS",
    "days_left",
    "ends_at",
    "make_authority",
    "make_certificate",
    "renew_authority",
]

AUTHORITY_YEARS = 10
SERVER_DAYS = 397
"""Days that a server's certificate holds: what browsers allow; `renew` makes a new one."""
_SLACK = timedelta(hours=1)


def make_authority(certificate: Path, key: Path, *, name: str, now: float) -> None:
    """Make the authority: P-384, may sign servers' certificates and nothing else.

    Raises:
        ConfigError: there is one already.
    """
    private = ec.generate_private_key(ec.SECP384R1())
    made = _self_signed(private, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} (oncofed)"[:64])]), now)
    write_secret(key, _pem(private))
    write_whole(certificate, made.public_bytes(Encoding.PEM))


def _self_signed(private: ec.EllipticCurvePrivateKey, subject: x509.Name, now: float) -> x509.Certificate:
    start = datetime.fromtimestamp(now, UTC) - _SLACK
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=round(AUTHORITY_YEARS * 365.25)))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA384())
    )


def renew_authority(certificate: Path, key: Path, *, now: float) -> None:
    """Make the authority's certificate anew, for the same key and name: whoever has the one before trusts what either signs.

    Raises:
        DataError: the authority's files are not there or damaged.
    """
    issuer, private = _authority(certificate, key)
    write_whole(certificate, _self_signed(private, issuer.subject, now).public_bytes(Encoding.PEM))


def make_certificate(
    authority: Path, authority_key: Path, *, certificate: Path, key: Path, host: str, now: float
) -> None:
    """Make a server's key and its certificate, in place of earlier ones.

    Args:
        host: the name or IP address under which clients reach it.

    Raises:
        DataError: the authority's files are not there or damaged.
    """
    issuer, signer = _authority(authority, authority_key)
    private = ec.generate_private_key(ec.SECP256R1())
    start = datetime.fromtimestamp(now, UTC) - _SLACK
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])]))
        .issuer_name(issuer.subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(min(start + timedelta(days=SERVER_DAYS), issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(_issued_by(issuer), critical=False)
        .sign(signer, hashes.SHA384())
    )
    write_whole(key, _pem(private), private=True)
    write_whole(certificate, made.public_bytes(Encoding.PEM))


def _authority(certificate: Path, key: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        issuer = x509.load_pem_x509_certificate(certificate.read_bytes())
        signer = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        raise DataError(f"{key}: the authority cannot be read; bring it back from a backup") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise DataError(f"{key}: is a key of another kind")
    return issuer, signer


def days_left(certificate: Path, *, now: float) -> float:
    """Days until a certificate ends; below zero when it has.

    Raises:
        DataError: it cannot be read.
    """
    return (ends_at(certificate) - now) / 86_400


def ends_at(certificate: Path) -> float:
    """When a certificate ends, in seconds since 1970.

    Raises:
        DataError: it cannot be read.
    """
    try:
        made = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError):
        raise DataError(f"{certificate}: cannot be read; make a new one with `oncofed-aggregator renew`") from None
    return made.not_valid_after_utc.timestamp()


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _names(host: str) -> list[x509.GeneralName]:
    try:
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(host))]
    except ValueError:
        names = [x509.DNSName(host)]
    return [x509.DNSName("localhost"), *names] if host == "127.0.0.1" else names


def _issued_by(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    known = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
