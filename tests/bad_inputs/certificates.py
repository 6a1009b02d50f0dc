"""Which certificates do server and clients of the TLS cases hold?"""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
from certificates import Authority, install


class Certificates:
    """A server that asks its clients for certificates of its own authority."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ours, self._foreign = Authority("ours"), Authority("foreign")
        certificate, key = self._ours.issue()
        install(directory, cert=certificate, key=key, ca=self._ours.pem)
        names = {"cert_file": "cert", "key_file": "key", "client_ca_file": "ca"}
        self.server_files = {name: str(directory / f"{file}.pem") for name, file in names.items()}

    def client_context(self, is_foreign: bool = False) -> ssl.SSLContext:
        """As `client_credentials`, for Python's own TLS."""
        context = ssl.create_default_context(cadata=self._ours.pem.decode())
        pair = (self._foreign if is_foreign else self._ours).issue("client")
        install(self._directory, client_cert=pair[0], client_key=pair[1])
        context.load_cert_chain(self._directory / "client_cert.pem", self._directory / "client_key.pem")
        return context

    def client_credentials(self, is_foreign: bool = False) -> grpc.ChannelCredentials:
        """Of a client that the server takes, or of one with another authority's certificate."""
        certificate, key = (self._foreign if is_foreign else self._ours).issue("client")
        return grpc.ssl_channel_credentials(self._ours.pem, key, certificate)
