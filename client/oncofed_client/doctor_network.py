"""`doctor` on the way to the aggregator: name, proxy, TLS with the enrolled authority, and its clock against ours.

One request is made, for the root of the aggregator's server, and its Date is read. Nothing of this site is sent.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit

from oncofed_client.doctor_check import Check, ok, skipped, wrong
from oncofed_shared.enrolment import Enrolment

__all__ = ["Proxy", "clock_check", "network_checks", "proxy_for"]

PATIENCE = 10.0
AHEAD, BEHIND = 4.0, 240.0
"""Seconds: Flower refuses a node whose clock is 5 s ahead, or 305 s behind; a Date is up to 1 s old."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proxy:
    """A proxy of the environment.

    Attributes:
        host, port: where it is.
        authorization: for its header; empty without a user in its address.
    """

    host: str
    port: int
    authorization: str


def proxy_for(host: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy over which a host would be reached, by the usual variables; None for a direct way.

    Raises:
        ValueError: the variable holds no address of a proxy.
    """
    exceptions = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if any(_covers(e.strip().lstrip("."), host) for e in exceptions.split(",")):
        return None
    text = next((v for k in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY") if (v := environment.get(k))), "")
    if not text:
        return None
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(parts.scheme)
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    secret = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
    return Proxy(host=parts.hostname, port=parts.port or 8080, authorization=secret)


def _covers(exception: str, host: str) -> bool:
    """Whether an entry of `no_proxy` is for a host: all, the host itself, or a domain that it is in."""
    return exception == "*" or (bool(exception) and (host == exception or host.endswith(f".{exception}")))


def network_checks(
    enrolment: Enrolment | None, environment: Mapping[str, str], *, clock: Callable[[], float] = time.time
) -> Iterator[Check]:
    """Name, proxy, TLS and clock of the enrolled aggregator."""
    names = ("name of the aggregator", "proxy", "TLS", "clock")
    if enrolment is None:
        yield from (skipped(name, "this site is not enrolled, so there is nobody to reach") for name in names)
        return
    host, _, port = enrolment.address.rpartition(":")
    host = host.strip("[]")
    try:
        proxy = proxy_for(host, environment)
    except ValueError:
        yield wrong("proxy", "the environment's proxy is not an address like http://HOST:PORT", "mend HTTPS_PROXY")
        return
    yield _resolved(host, int(port), proxy)
    yield ok("proxy", "none; the way is direct" if proxy is None else f"by {proxy.host}:{proxy.port}")
    yield from _reached(host, int(port), proxy, enrolment.certificate, clock)


def _resolved(host: str, port: int, proxy: Proxy | None) -> Check:
    name = "name of the aggregator"
    target, number = (host, port) if proxy is None else (proxy.host, proxy.port)
    try:
        found = sorted({str(a[4][0]) for a in socket.getaddrinfo(target, number, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError):
        return wrong(name, f"{target}: has no address here", "ask for a DNS entry, or write it into the hosts file")
    behind = "" if proxy is None else f"; {host} is resolved by the proxy"
    return ok(name, f"{target} is {', '.join(found)}{behind}")


def _reached(
    host: str, port: int, proxy: Proxy | None, certificate: str, clock: Callable[[], float]
) -> Iterator[Check]:
    context = ssl.create_default_context(cadata=certificate)
    where = f"{host}:{port}"
    connection = _connection(host, port, proxy, context)
    with closing(connection):
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            yield wrong(
                "TLS",
                f"{where}: its certificate does not hold: {error.verify_message}",
                "somebody in between may be replacing it (a proxy that looks into TLS): ask for an exception for this "
                "address; or the aggregator was set up anew: compare fingerprints and enrol again",
            )
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            yield wrong(
                "TLS", f"{where}: cannot be reached: {why}", "open the firewall for this address, or mend the proxy"
            )
        else:
            yield ok("TLS", f"{where}: {_version(connection)}, certificate signed by the enrolled authority")
            yield clock_check(_date(connection), clock())
            return
    yield skipped("clock", "the aggregator was not reached")


def _connection(host: str, port: int, proxy: Proxy | None, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    if proxy is None:
        return http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=context)
    made = http.client.HTTPSConnection(proxy.host, proxy.port, timeout=PATIENCE, context=context)
    made.set_tunnel(host, port, {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {})
    return made


def _version(connection: http.client.HTTPSConnection) -> str:
    channel = connection.sock
    return (channel.version() if isinstance(channel, ssl.SSLSocket) else None) or "TLS"


def _date(connection: http.client.HTTPSConnection) -> str | None:
    try:
        connection.request("HEAD", "/")
        return connection.getresponse().getheader("Date")
    except (OSError, http.client.HTTPException):
        return None


def clock_check(date: str | None, now: float) -> Check:
    """Our clock against the aggregator's.

    Args:
        date: its Date header, whole seconds.
        now: ours, seconds since 1970, just after it came.
    """
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return skipped("clock", "the aggregator's server does not tell its time")
    # The header has lost the part of a second.
    ahead = now - (theirs + 0.5)
    remedy = "set this machine's clock by NTP (timedatectl set-ntp true); if it is right, tell the aggregator"
    if ahead > AHEAD:
        return wrong("clock", f"{ahead:.0f} s ahead of the aggregator's; 5 s lock the gate out", remedy)
    if ahead < -BEHIND:
        return wrong("clock", f"{-ahead:.0f} s behind the aggregator's; 5 minutes lock the gate out", remedy)
    return ok("clock", f"within {max(1.0, abs(ahead)):.0f} s of the aggregator's")
