"""rediss://: the store behind TLS, its certificate checked."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor, ssl
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.protocols.portforward import ProxyClient, ProxyClientFactory, ProxyFactory, ProxyServer
from twisted.trial.unittest import TestCase

from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard.router import Router
from taba.shard.servers.pool import Pool
from taba.shard.servers.url import parse_store
from taba.shard.transaction import Writes
from tests.needs import needs_localhost
from tests.patience import PATIENCE_SECONDS
from tests.shard.load import until
from tests.shard.pieces import always
from tests.stores import borrow
from tests.topologies import Cluster, SentinelTrio


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


class TLSCase(TestCase):
    timeout = 300

    def setUp(self) -> None:
        directory = tempfile.mkdtemp(prefix="taba-tls-")
        self.addCleanup(shutil.rmtree, directory)
        self.pem = make_certificate()
        self.trusted = Path(directory) / "certificate.pem"
        self.trusted.write_bytes(self.pem)

    def proxy(self, port: int, factory: type[ProxyFactory] = ProxyFactory) -> Any:
        """TLS in front of a server that has none."""
        proxy = factory("127.0.0.1", port)
        proxy.noisy = False
        listening = reactor.listenSSL(0, proxy, ssl.PrivateCertificate.loadPEM(self.pem).options(), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        return listening

    def router(self, url: str) -> Router:
        router = Router(parse_store(url), 4, reactor)
        self.addCleanup(lambda: ensureDeferred(router.close()))
        return router

    def trust(self) -> None:
        before = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = str(self.trusted)
        self.addCleanup(lambda: os.environ.pop("SSL_CERT_FILE") if before is None else os.environ.update(SSL_CERT_FILE=before))


class TLSTests(TLSCase):
    def setUp(self) -> None:
        super().setUp()
        self.valkey = borrow(self, tcp=True)
        self.valkey.ask("ACL", "SETUSER", "taba", "on", ">secret", "~*", "&*", "+@all")
        self.port = self.proxy(self.valkey.port)

    async def test_a_store_behind_tls_with_a_user_works_by_name_and_by_address(self) -> None:
        needs_localhost()
        self.trust()
        for host in ("localhost", "127.0.0.1"):
            router = self.router(f"rediss://taba:secret@{host}:{self.port.getHost().port}")
            await router.connect()
            self.assertEqual(await router.transact(1, [], lambda _: Writes([(b"SET", b"taba:{1}:a", b"\xff")], "done")), "done")
            self.assertEqual(await router.read(1, [(b"GET", b"taba:{1}:a")]), [b"\xff"])
            (shard,) = await router.shards()
            self.assertTrue(shard.url.startswith("rediss://"))
            self.assertNotIn("secret", shard.url + router.url + repr(router.map))
            self.assertNotIn(b"secret", self.valkey.ask("GET", "taba:map") + self.valkey.ask("GET", "taba:store"))

    async def test_a_server_that_asks_for_a_certificate_is_shown_the_one_in_the_address(self) -> None:
        needs_localhost()
        own = ssl.PrivateCertificate.loadPEM(self.pem)
        proxy = ProxyFactory("127.0.0.1", self.valkey.port)
        proxy.noisy = False
        listening = reactor.listenSSL(0, proxy, own.options(ssl.Certificate.loadPEM(self.pem)), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        self.trusted.chmod(0o600)
        url = f"rediss://taba:secret@localhost:{listening.getHost().port}"
        files = f"cacert={self.trusted}&cert={self.trusted}&key={self.trusted}"
        router = self.router(f"{url}?{files}")  # nothing else says whom to trust
        await router.connect()
        self.assertTrue(await router.set("a", "b"))
        self.assertNotIn(str(self.trusted), router.url + repr(router.map))
        stranger = Pool(reactor, parse_store(f"{url}?cacert={self.trusted}").addresses[0])
        self.addCleanup(lambda: ensureDeferred(stranger.close()))
        stranger.start()
        with self.assertRaises(StoreUnavailable):
            await stranger.execute([(b"PING",)], checkout_seconds=1.0)
        with self.assertRaisesRegex(ConfigurationError, "/nowhere"):
            await self.router(f"{url}?cacert=/nowhere").connect()

    async def test_files_that_are_written_anew_are_read_by_the_next_connection_and_while_they_are_none_the_server_is_away(self) -> None:
        needs_localhost()
        whole = self.trusted.read_bytes()
        address = parse_store(f"rediss://taba:secret@localhost:{self.port.getHost().port}?cacert={self.trusted}").addresses[0]
        pool = Pool(reactor, address)
        self.addCleanup(lambda: ensureDeferred(pool.close()))
        pool.start()
        self.assertEqual(await pool.execute([(b"PING",)], checkout_seconds=PATIENCE_SECONDS), [b"PONG"])
        self.trusted.write_bytes(b"half written")
        for connection in list(pool._open):
            connection.abort("as when the server restarts")
        for _ in range(2):
            with self.assertRaises(StoreUnavailable):
                await pool.execute([(b"PING",)], checkout_seconds=0.5)
        self.assertFalse(pool._waiters)
        self.trusted.write_bytes(whole)
        self.assertEqual(await pool.execute([(b"PING",)], checkout_seconds=PATIENCE_SECONDS), [b"PONG"])

    async def test_a_certificate_that_nobody_vouches_for_is_refused(self) -> None:
        needs_localhost()
        pool = Pool(reactor, parse_store(f"rediss://localhost:{self.port.getHost().port}").addresses[0])
        self.addCleanup(lambda: ensureDeferred(pool.close()))
        pool.start()
        with self.assertRaises(StoreUnavailable) as caught:
            await pool.execute([(b"PING",)], checkout_seconds=1.0)
        self.assertIn("signed by nobody who is trusted here; name its authority with ?cacert=FILE", str(caught.exception))

    async def test_a_file_of_the_address_that_holds_none_is_named_as_it_stands_there(self) -> None:
        self.trusted.chmod(0o600)
        none = self.trusted.parent / "none.pem"
        none.write_text("nothing")
        none.chmod(0o600)
        files = {"cacert": str(self.trusted), "cert": str(self.trusted), "key": str(self.trusted)}
        for wrong in files:
            query = "&".join(f"{name}={none if name == wrong else path}" for name, path in files.items())
            with self.assertRaises(ConfigurationError) as caught:
                Pool(reactor, parse_store(f"rediss://localhost:1?{query}").addresses[0]).start()
            self.assertIn(f"--store: '?{wrong}={none}': takes a file with", str(caught.exception))


ports: dict[int, int] = {}  # a server's → that of the TLS before it


class _Translating(ProxyClient):
    """Passes on what a sentinel says, with the ports at which there is TLS."""

    def dataReceived(self, content: bytes) -> None:
        for plain, secure in ports.items():
            content = content.replace(b"\r\n%d\r\n" % plain, b"\r\n%d\r\n" % secure)
        super().dataReceived(content)


class _TranslatingClients(ProxyClientFactory):
    protocol = _Translating
    noisy = False


class _TranslatingServer(ProxyServer):
    clientProtocolFactory = _TranslatingClients


class _TranslatingFactory(ProxyFactory):
    protocol = _TranslatingServer


@pytest.mark.real
class TopologyTests(TLSCase):
    async def use(self, router: Router) -> None:
        await router.connect()
        for bucket in range(4):
            await router.transact(bucket, [], always((b"SET", b"taba:{%d}:a" % bucket, b"\xff")))
        replies = await router.read_many({bucket: [(b"GET", b"taba:{%d}:a" % bucket)] for bucket in range(4)})
        self.assertEqual(replies, {bucket: [b"\xff"] for bucket in range(4)})
        for shard in await router.shards():
            self.assertTrue(shard.url.startswith("rediss"), shard)
            self.assertNotIn("secret", shard.url)

    async def test_a_cluster_behind_tls_with_a_user(self) -> None:
        self.trust()
        cluster = await deferToThread(Cluster, False)
        self.addCleanup(cluster.remove)
        for node in cluster.nodes:
            node.call("ACL", "SETUSER", "taba", "on", ">secret", "~*", "&*", "+@all")
            node.call("ACL", "SETUSER", "default", "off")
        secured = [self.proxy(node.port).getHost().port for node in cluster.nodes]
        for node, port in zip(cluster.nodes, secured, strict=True):
            self.assertEqual(node.as_user("taba", "secret", "CONFIG", "SET", "cluster-announce-port", port), b"OK")
        await self.use(self.router(f"rediss+cluster://taba:secret@127.0.0.1:{secured[0]}"))

    async def test_sentinels_and_masters_behind_tls_with_a_user(self) -> None:
        needs_localhost()
        self.trust()
        trio = await deferToThread(SentinelTrio, 2, 0, "secret", "other")
        self.addCleanup(trio.remove)
        for (master,) in trio.servers.values():
            ports[master.port] = self.proxy(master.port).getHost().port
        self.addCleanup(ports.clear)
        secured = [self.proxy(sentinel.port, _TranslatingFactory).getHost().port for sentinel in trio.sentinels]
        servers = ",".join(f"localhost:{port}" for port in secured)
        await self.use(self.router(f"rediss+sentinel://taba:secret@{servers}/?shards=m1,m2&sentinels=:other"))
        unknown = self.router(f"rediss+sentinel://taba:secret@{servers}/?shards=m1&sentinels=:wrong")
        connecting = ensureDeferred(unknown.connect())
        connecting.addErrback(lambda failure: failure.trap(StoreUnavailable))
        await until(lambda: "NOAUTH" in " ".join(unknown.problems))
        self.assertNotIn("wrong", " ".join(unknown.problems))
        await unknown.close()
        await connecting
