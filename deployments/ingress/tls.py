"""Which certificate does the server show, whose client certificates does it take, and what if the files change?"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography.x509 import load_pem_x509_certificates

from deployments.config_sections import TlsConfig
from deployments.metrics import Metrics
from deployments.watched_files import WatchedFiles
from llama31.errors import ConfigInvalid

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Identity:
    """One consistent reading of the files."""

    context: ssl.SSLContext
    grpc_configuration: Any
    # Which file -> Unix time at which the first of its certificates ends.
    expiry_s: Mapping[str, float]


class ServerTls:
    """The files of one server, for both doors. Every new connection looks whether they changed.

    Broken or half-written files change nothing: what was read before stays in force.
    """

    def __init__(self, files: TlsConfig, metrics: Metrics) -> None:
        """Reads the files. Raises: ConfigInvalid."""
        self._files = files
        self._metrics = metrics
        self._lock = threading.Lock()
        self._watched = WatchedFiles([f for f in (files.cert_file, files.key_file, files.client_ca_file) if f])
        self._watched.have_changed()
        self._identity = _read(files)
        self._tell_expiry()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For `grpc.aio.Server.add_secure_port`. gRPC asks on a thread of its own at each handshake."""
        given = self._identity

        def changed() -> Any:
            nonlocal given
            identity = self._current()
            if identity is given:
                return None
            given = identity
            return identity.grpc_configuration

        needs_client = self._files.client_ca_file is not None
        return grpc.dynamic_ssl_server_credentials(given.grpc_configuration, changed, needs_client)

    def http_context(self) -> ssl.SSLContext:
        """For any server of asyncio's."""
        return _Listener(self._current_context)

    def _current_context(self) -> ssl.SSLContext:
        return self._current().context

    def _current(self) -> _Identity:
        with self._lock:
            if self._watched.have_changed():
                try:
                    self._identity = _read(self._files)
                except ConfigInvalid as error:
                    self._metrics.add("llama31_reloads_total", what="tls", outcome="refused")
                    _LOG.error("the certificate of before stays in use: %s", error)
                else:
                    self._metrics.add("llama31_reloads_total", what="tls", outcome="loaded")
                    self._tell_expiry()
                    _LOG.info("%s was read again", self._files.cert_file)
            return self._identity

    def _tell_expiry(self) -> None:
        for file, ends_s in self._identity.expiry_s.items():
            self._metrics.set("llama31_certificate_expiry_timestamp_seconds", ends_s, file=file)


class _Listener(ssl.SSLContext):
    """Gives every connection to the context of the moment.

    Each context has ticket keys and a session cache of its own. Were only the certificates exchanged, a client
    of an authority that was removed could come back by resuming its session, which no longer shows a certificate.
    """

    _choose: Callable[[], ssl.SSLContext]

    def __new__(cls, choose: Callable[[], ssl.SSLContext]) -> _Listener:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made._choose = choose
        return made

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """What asyncio calls for each connection."""
        return self._choose().wrap_bio(*args, **options)


def check_tls_files(files: TlsConfig) -> None:
    """Raises: ConfigInvalid if a server could not start with them."""
    _read(files)


def _read(files: TlsConfig) -> _Identity:
    """Raises: ConfigInvalid, also if the key is not the certificate's, which gRPC would notice too late."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client_ca: bytes | None = None
    expiry_s: dict[str, float] = {}
    at = f"{files.cert_file} with {files.key_file}"
    try:
        context.load_cert_chain(files.cert_file, files.key_file, _no_password)
        pair = (Path(files.key_file).read_bytes(), Path(files.cert_file).read_bytes())
        expiry_s["cert_file"] = _first_end_s(pair[1])
        if files.client_ca_file is not None:
            at = files.client_ca_file
            context.load_verify_locations(files.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
            client_ca = Path(files.client_ca_file).read_bytes()
            expiry_s["client_ca_file"] = _first_end_s(client_ca)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigInvalid(f"ingress.tls: {at}: {why}") from None
    return _Identity(context, grpc.ssl_server_certificate_configuration([pair], client_ca), expiry_s)


def _first_end_s(pem: bytes) -> float:
    return min(found.not_valid_after_utc.timestamp() for found in load_pem_x509_certificates(pem))


def _no_password() -> str:
    """Else OpenSSL would ask on the terminal."""
    raise ValueError("the key is encrypted; give one without a passphrase")
