"""A throwaway certificate authority."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The PEM files of one certificate and its private key."""

    certificate: Path
    key: Path


class Certificates:
    """A certificate authority, a server certificate of its own, and clients' on demand.

    ``server`` is valid for 127.0.0.1 and localhost and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))
        self.server = self._write("server", self._authority.issue_cert("127.0.0.1", "localhost"))

    def client(self, name: str = "client") -> KeyPair:
        """A client certificate with this common name."""
        return self._write(f"client-{name}", self._authority.issue_cert(common_name=name))

    def client_context(self, client: KeyPair | None = None) -> ssl.SSLContext:
        """What a client needs to trust this authority, and to show its certificate if given."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        return context

    def _write(self, name: str, issued: trustme.LeafCert) -> KeyPair:
        pair = KeyPair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(str(pair.certificate))
        issued.private_key_pem.write_to_path(str(pair.key))
        return pair
