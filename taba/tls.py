"""TLS at the edges: what a listener shows and asks for, and what a sender verifies. Needs what Twisted's extra `tls` brings.

1. Files are read whole and checked before anything is replaced: a reload that fails leaves what was there.
2. A sender verifies the peer's certificate and its name, always; there is no option that does not.
3. A listener with authorities of its own asks each peer for a certificate and refuses one that they did not sign. Who shows none may
   still ask what is open to all, so that health checks need no certificate.
"""

from __future__ import annotations

import math
import re
import stat
import time
from pathlib import Path
from typing import Any, NamedTuple

from OpenSSL import SSL, crypto
from twisted.internet.error import VerifyError
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    KeyPair,
    PrivateCertificate,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from taba.bounds import DAY, MiB
from taba.errors import ConfigurationError
from taba.plural import many

MAX_PEM_BYTES = 4 * MiB  # the authorities of all the world take a quarter of a MiB
EXPIRY_DAYS = 14  # before a certificate's end it is a problem: time enough for a person

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
_BAD_PEM = (SSL.Error, crypto.Error, VerifyError, ValueError)


class Shown(NamedTuple):
    """What a side shows of itself: its certificate with key, and the certificates between it and its authority."""

    own: PrivateCertificate
    chain: list[Certificate]

    @property
    def expires(self) -> float:
        """When its own certificate ends, in unix seconds."""
        return _end(self.own)

    @property
    def begins(self) -> float:
        """From when on its own certificate is taken, in unix seconds."""
        return float(self.own.original.to_cryptography().not_valid_before_utc.timestamp())

    @property
    def ends_first(self) -> float:
        """When the first of what is shown ends: peers may need each link of the chain."""
        return min(map(_end, (self.own, *self.chain)))

    def is_taken(self, unix_now: float) -> bool:
        """Whether peers whose clocks are right take its own certificate."""
        return self.begins <= unix_now < self.expires


class TlsFiles(NamedTuple):
    """The files of --tls-cert, --tls-key and --tls-ca."""

    certificate: Path
    key: Path
    authorities: Path | None = None

    def read(self) -> Shown:
        """The certificate, its key and its chain. Raises ConfigurationError."""
        first, *chain = _read_certificates("--tls-cert", self.certificate)
        content = _read("--tls-key", self.key)
        if stat.S_IMODE(self.key.stat().st_mode) & 0o007:
            raise ConfigurationError("--tls-key", str(self.key), "takes a file that not everybody can read (chmod 600, or 640)")
        try:
            key = KeyPair(crypto.load_privatekey(crypto.FILETYPE_PEM, content, _no_passphrase))
        except _BAD_PEM:
            takes = "takes a file with a private key, as PEM and without a passphrase"
            raise ConfigurationError("--tls-key", str(self.key), takes) from None
        try:
            own = PrivateCertificate.fromCertificateAndKeyPair(first, key)
            own.options().getContext()
        except _BAD_PEM:
            raise ConfigurationError("--tls-key", str(self.key), f"takes the key of the certificate in {self.certificate}") from None
        return Shown(own, chain)

    def read_after(self, before: Shown | None) -> Shown:
        """The same, read again. Raises ConfigurationError, too, where it is past its end, or begins later, and what is shown until now is
        taken."""
        shown, now = self.read(), time.time()
        if before is not None and before.is_taken(now) and not shown.is_taken(now):
            takes = "that is not past its end" if shown.expires <= now else f"that has begun, which this one does {_in(shown.begins - now)}"
            raise ConfigurationError("--tls-cert", str(self.certificate), f"takes a certificate {takes}")
        return shown


@implementer(IOpenSSLServerConnectionCreator)
class ListeningTls:
    """What a listener shows to its peers; `reload` reads the files again. Raises ConfigurationError."""

    def __init__(self, files: TlsFiles):
        self.files = files
        self.changes = -1
        """How often other authorities were read than before: what was shown until then was signed by those of then."""
        self._trusted: list[bytes] | None = None
        self._shown: Shown | None = None
        self._last_authority = math.inf
        """When the last of the authorities ends, in unix seconds: then nobody's certificate is taken any more."""
        self.reload()

    def reload(self) -> None:
        """Read the files again: new connections get what is in them now. Raises ConfigurationError, and keeps what was there."""
        shown = self.files.read_after(self._shown)
        options: dict[str, Any] = {}
        digests: list[bytes] = []
        last = math.inf
        if self.files.authorities is not None:
            authorities = _read_certificates("--tls-ca", self.files.authorities)
            trusted = [found.original for found in authorities]
            options = {"verify": True, "caCerts": trusted, "requireCertificate": False}
            digests = sorted(found.digest("sha256") for found in trusted)
            last = max(map(_end, authorities))
        extra = [link.original for link in shown.chain]
        self._options = CertificateOptions(shown.own.privateKey.original, shown.own.original, extraCertChain=extra, **options)
        self._options.getContext()
        if digests != self._trusted:
            self._trusted = digests
            self.changes += 1
        self._shown, self._last_authority = shown, last
        self.expires = shown.ends_first

    @property
    def asks_for_certificates(self) -> bool:
        """Whether a peer must show a certificate to be answered."""
        return self.files.authorities is not None

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        return SSL.Connection(self._options.getContext(), None)

    def problems(self, unix_now: float) -> list[str]:
        """What needs a person, in sentences."""
        assert self._shown is not None
        found = []
        if unix_now < self._shown.begins:
            when = _in(self._shown.begins - unix_now)
            cure = "put one there that has begun and send SIGHUP, or see to this host's clock"
            found.append(f"the certificate in {self.files.certificate} begins {when}, and nobody takes it before: {cure}")
        ends = (
            (self.expires, "the certificate" if self.expires == self._shown.expires else "one of the chain", self.files.certificate),
            (self._last_authority, "the last of the authorities", self.files.authorities),
        )
        for end, what, path in ends:
            days = (end - unix_now) / DAY
            if days <= EXPIRY_DAYS:
                when = f"ends in {many(round(days), 'day')}" if days > 0 else "is past its end"
                found.append(f"{what} in {path} {when}: put a new one there and send SIGHUP")
        return found


@implementer(IPolicyForHTTPS)
class SendingTls:
    """What a sender verifies, and shows where a peer asks; `reload` reads the files again. Raises ConfigurationError.

    Without `authorities` (--cacert) it trusts whom the system trusts.
    """

    def __init__(self, authorities: Path | None, shown: TlsFiles | None):
        self._authorities, self._files = authorities, shown
        self._shown: Shown | None = None
        self.reload()

    def reload(self) -> None:
        """Read the files again. Raises ConfigurationError, and keeps what was there."""
        trusted = None if self._authorities is None else _read_certificates("--cacert", self._authorities)
        shown = None if self._files is None else self._files.read_after(self._shown)
        self._trust = None if trusted is None else trustRootFromCertificates(trusted)
        self._shown = shown

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        shown = self._shown
        extra = {"extraCertChain": [link.original for link in shown.chain]} if shown else {}
        own = shown.own if shown else None
        return optionsForClientTLS(hostname.decode("ascii"), self._trust, own, extraCertificateOptions=extra)


class TlsWords(NamedTuple):
    """What people write where: whom we trust, what we show, and how the address of a peer without TLS begins."""

    authorities: str = "--cacert"
    own: str = "--tls-cert and --tls-key"
    plain: str = "http:"


OPTIONS = TlsWords()


def tls_sentence(error: BaseException | None, words: TlsWords = OPTIONS) -> str | None:
    """What a failed handshake means, for people; None for what is none."""
    if type(error).__name__ == "VerificationError":  # of service_identity, whose message is a list of objects
        return "its certificate is for another name than this address has"
    if not isinstance(error, SSL.Error):
        return None
    reasons = " ".join(str(part) for item in (error.args[0] if error.args else []) for part in item if part)
    if "verify failed" in reasons:
        # the library does not say which of the two
        trust = f"its certificate is signed by nobody who is trusted here; name its authority with {words.authorities}"
        return f"{trust}, or have it renewed if it is past its end"
    if "certificate required" in reasons or "handshake failure" in reasons:
        return f"it takes a client certificate: {words.own}"
    if "wrong version" in reasons or "record layer" in reasons or "packet length" in reasons:
        return f"it speaks no TLS; check whether its address begins with {words.plain}"
    return f"TLS: {reasons or 'the handshake failed'}"[:200]


def _end(of: Certificate) -> float:
    return float(of.original.to_cryptography().not_valid_after_utc.timestamp())


def _in(seconds: float) -> str:
    """When that is, in words; less than a day in hours."""
    days = seconds / DAY
    return f"in {many(round(days), 'day')}" if days >= 1 else f"in {many(math.ceil(24 * days), 'hour')}"


def _read_certificates(option: str, path: Path) -> list[Certificate]:
    found = []
    for text in _CERTIFICATE.findall(_read(option, path)):
        try:
            found.append(Certificate.loadPEM(text))
        except _BAD_PEM:
            found.clear()
            break
    if not found:
        raise ConfigurationError(option, str(path), "takes a file with certificates, as PEM")
    return found


def _read(option: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(option, str(path), f"takes a file that can be read: {(error.strerror or str(error)).lower()}") from None
    if len(content) > MAX_PEM_BYTES:
        raise ConfigurationError(option, str(path), f"takes a file of at most {MAX_PEM_BYTES} bytes")
    return content


def _no_passphrase(*_: object) -> bytes:
    return b""  # nobody is there to be asked for one
