"""Certificates and keys of a federation, made with `cryptography` at call time.

One authority signs the server's certificate (TLS); a party proves who it is by a key of its own (P-384, as SuperNodes
take it), whose public half the server registers under the party's name.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.core import errors

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

DAYS = 90
AUTHORITY, CERTIFICATE, SECRET = "ca.crt", "server.crt", "server.key"  # of the server's folder
PARTIES = "parties"  # below it: NAME.pub
LONGEST = 64  # letters of a host's name: more do not fit into a certificate's subject
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")
KEY, PUBLIC = "party.key", "party.pub"  # of a party's folder


def check_hosts(hosts: Sequence[str]) -> None:
    """Refuse what a certificate cannot be made for.

    Args:
        hosts: Names and addresses that parties reach the server by.

    Raises:
        Refused: One is neither a name nor an address.
    """
    for host in hosts:
        if not (_NAME.fullmatch(host) and len(host) <= LONGEST) and not _is_address(host):
            raise errors.Refused(
                f"--host {host!r} is neither a name nor an address by which a server is reached; give e.g. "
                "fed.example.org or 10.0.0.7, without port"
            )


def make_server(folder: Path, hosts: Sequence[str]) -> None:
    """An authority, and the server's certificate; the authority's key is used once and not kept.

    Args:
        folder: Made, readable by its owner alone.
        hosts: Names and addresses that parties reach the server by.
    """
    x509, ec, hashes = _library()
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    _private(folder)
    authority, secret = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Shoal federation")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    signed_by_itself = (
        _certificate(issuer, issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA256())
    )
    server = (
        _certificate(subject, issuer, secret)
        .add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority, hashes.SHA256())
    )
    _write(folder / AUTHORITY, _pem(signed_by_itself), secret=False)
    _write(folder / CERTIFICATE, _pem(server), secret=False)
    _write(folder / SECRET, _secret(secret, ssh=False), secret=True)


def make_party(folder: Path) -> bytes:
    """A party's key.

    Args:
        folder: Made, readable by its owner alone.

    Returns:
        The public half, as the server registers it.
    """
    _, ec, _ = _library()
    from cryptography.hazmat.primitives import serialization

    _private(folder)
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"
    _write(folder / KEY, _secret(key, ssh=True), secret=True)
    _write(folder / PUBLIC, public, secret=False)
    return public


def make_all(server: Path, parties: Path, hosts: Sequence[str], names: Sequence[str]) -> None:
    """Everything in one place, for a federation whose owners are one person, e.g. on loopback.

    Args:
        server: Folder of the server's.
        parties: Folder of a folder for each party.
        hosts: As of `make_server`.
        names: Of the parties.
    """
    (server / PARTIES).mkdir(parents=True, exist_ok=True)
    for name in names:
        public = make_party(parties / name)
        _write(server / PARTIES / f"{name}.pub", public, secret=False)
    make_server(server, hosts)  # last: where the certificate is, everything is
    for name in names:
        shutil.copy(server / AUTHORITY, parties / name / AUTHORITY)


def loopback(host: str) -> bool:
    """Whether a host's name or address is of this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _library() -> tuple:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise errors.Refused(
            "keys need the package cryptography, which is not installed; install it with "
            "`pip install 'shoal-rl[federated]'`"
        ) from None
    return x509, ec, hashes


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=DAYS))
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)


def _secret(key: ec.EllipticCurvePrivateKey, *, ssh: bool) -> bytes:
    from cryptography.hazmat.primitives import serialization

    form = serialization.PrivateFormat.OpenSSH if ssh else serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def _write(path: Path, data: bytes, *, secret: bool) -> None:
    """Never readable by others, not even for a moment; never over a file that is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
