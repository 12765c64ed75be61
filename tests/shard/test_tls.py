"""rediss://: the store behind TLS, its certificate checked."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor, ssl
from twisted.internet.defer import ensureDeferred
from twisted.protocols.portforward import ProxyFactory
from twisted.trial.unittest import TestCase

from taba.errors import StoreUnavailable
from taba.shard.pool import Pool
from taba.shard.router import Router
from taba.shard.transaction import Writes
from taba.shard.url import parse_store
from tests.valkey import EphemeralValkey


def make_certificate() -> bytes:
    """Key and certificate of localhost, signed by itself, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(names, False).add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    certificate = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private + certificate.public_bytes(serialization.Encoding.PEM)


class TLSTests(TestCase):
    timeout = 60

    def setUp(self) -> None:
        directory = tempfile.mkdtemp(prefix="taba-tls-")
        self.addCleanup(shutil.rmtree, directory)
        pem = make_certificate()
        self.trusted = Path(directory) / "certificate.pem"
        self.trusted.write_bytes(pem)
        self.valkey = EphemeralValkey(tcp=True)
        self.addCleanup(self.valkey.remove)
        self.valkey.ask("ACL", "SETUSER", "taba", "on", ">secret", "~*", "&*", "+@all")
        proxy = ProxyFactory("127.0.0.1", self.valkey.port)
        proxy.noisy = False
        certificate = ssl.PrivateCertificate.loadPEM(pem)
        self.port = reactor.listenSSL(0, proxy, certificate.options(), interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)

    def trust(self) -> None:
        before = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = str(self.trusted)
        self.addCleanup(lambda: os.environ.pop("SSL_CERT_FILE") if before is None else os.environ.update(SSL_CERT_FILE=before))

    async def test_a_store_behind_tls_with_a_user_works_by_name_and_by_address(self) -> None:
        self.trust()
        for host in ("localhost", "127.0.0.1"):
            router = Router(parse_store(f"rediss://taba:secret@{host}:{self.port.getHost().port}"), 4, reactor)
            self.addCleanup(lambda router=router: ensureDeferred(router.close()))
            await router.connect()
            self.assertEqual(await router.transact(1, [], lambda _: Writes([(b"SET", b"taba:{1}:a", b"\xff")], "done")), "done")
            self.assertEqual(await router.read(1, [(b"GET", b"taba:{1}:a")]), [b"\xff"])
            (shard,) = await router.shards()
            self.assertTrue(shard.url.startswith("rediss://"))
            self.assertNotIn("secret", shard.url + router.url + repr(router.map))
            self.assertNotIn(b"secret", self.valkey.ask("GET", "taba:map") + self.valkey.ask("GET", "taba:store"))

    async def test_a_certificate_that_nobody_vouches_for_is_refused(self) -> None:
        pool = Pool(reactor, parse_store(f"rediss://localhost:{self.port.getHost().port}").addresses[0])
        self.addCleanup(lambda: ensureDeferred(pool.close()))
        pool.start()
        with self.assertRaises(StoreUnavailable) as caught:
            await pool.execute([(b"PING",)], checkout_seconds=1.0)
        self.assertIn("certificate verify failed", str(caught.exception))
