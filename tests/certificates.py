"""Certificates for tests: authorities, and what they sign, as PEM files."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

NAMES = ("localhost", "127.0.0.1")


def write(path: Path, content: bytes) -> Path:
    """Replace a file as Kubernetes does: whole, under another inode."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content)
    return draft.replace(path)


@dataclass(frozen=True)
class Files:
    """A certificate and its key on disk."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates.

    Attributes:
        ca: its own certificate, a PEM file.
    """

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        own = self._build(self._name, self._key.public_key(), 1).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        certificate = own.sign(self._key, hashes.SHA256())
        self.ca = write(directory / f"{name}.pem", certificate.public_bytes(Encoding.PEM))

    def _build(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: float
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days))
        )

    def pem(
        self, names: Sequence[str] = NAMES, *, days: float = 1, passphrase: bytes = b""
    ) -> tuple[bytes, bytes]:
        """A certificate for some names, and its key; negative days have passed."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
        alternatives: list[x509.GeneralName] = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        builder = self._build(subject, key.public_key(), days).add_extension(
            x509.SubjectAlternativeName(alternatives), critical=False
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        return (
            certificate.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption),
        )

    def issue(self, name: str, names: Sequence[str] = NAMES, *, days: float = 1) -> Files:
        """Write ``NAME.crt`` and ``NAME.key``, over those that may be there."""
        certificate, key = self.pem(names, days=days)
        return Files(
            write(self.directory / f"{name}.crt", certificate),
            write(self.directory / f"{name}.key", key),
        )
