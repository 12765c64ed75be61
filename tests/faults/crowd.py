"""Connections that mean harm, of one address of another host, at a Server of its own: `unshare -n python -m tests.faults.crowd`.

The network is this process's own: the loopback device alone, with addresses that are no loopback addresses and so stand for other hosts.
Prints as JSON what became of those that mean no harm meanwhile, and what the Server says of the others.
"""

from __future__ import annotations

import fcntl
import json
import resource
import select
import socket
import struct
import threading
from collections import Counter
from pathlib import Path

from taba.query import Query
from taba.tokens import KINDS, READ, WRITE, line_of, new_token
from tests.patience import until
from tests.services import ANSWER_SECONDS, Services

STRANGER, FRIEND, HERE = "10.9.0.1", "10.9.0.2", "10.9.0.9"
CROWD = 1024  # what a process may usually have open
SET_ADDRESS, SET_FLAGS, IS_UP = 0x8916, 0x8914, 0x41  # from linux/sockios.h and linux/if.h: up, and running
DRIP_SECONDS = 0.2
RECORD = "from taba import client\nhits = client.counter('hits')\nfor _ in range(100): hits.inc()\nclient.stop()"


def make_network() -> None:
    """Bring the loopback device up, with further addresses."""
    with socket.socket() as any_socket:
        for place, address in enumerate(("127.0.0.1", STRANGER, FRIEND, HERE)):
            name = f"lo:{place}".encode() if place else b"lo"
            fcntl.ioctl(any_socket, SET_ADDRESS, struct.pack("16sH2x4s8x", name, socket.AF_INET, socket.inet_aton(address)))
            fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH14x", name, IS_UP))


def ask(port: int, source: str, address: str, token: str) -> int:
    """The status of an answer to a request that comes from `source`."""
    with socket.create_connection((address, port), ANSWER_SECONDS, (source, 0)) as connection:
        connection.sendall(f"GET /v1/names HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        answer = connection.recv(65_536)
        return int(answer.split()[1]) if answer else 0


class Crowd:
    """CROWD connections: silent, dripping a header, a body or half a TLS handshake, asking without reading, or half closed."""

    def __init__(self, port: int):
        self._port = port
        self._connections: dict[int, tuple[socket.socket, int]] = {}
        self.made = 0
        self._is_over = threading.Event()
        while self.made < CROWD:
            self._one()
        self._dripping = threading.Thread(target=self._drip, daemon=True)
        self._dripping.start()

    def _one(self) -> None:
        kind = self.made % 6
        self.made += 1
        connection = socket.create_connection((HERE, self._port), ANSWER_SECONDS, (STRANGER, 0))
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection, kind
        head = b"POST /v1/events HTTP/1.1\r\nHost: 10.9.0.9\r\nContent-Length: 1000\r\n\r\n"
        first = (b"", b"GET /v1", head, b"\x16\x03\x01\x02\x00\x01\x00", b"GET /v1/names HTTP/1.1\r\nHost: 10.9.0.9\r\n\r\n" * 9, b"G")
        self._send(connection, first[kind])
        if kind == 5:
            connection.shutdown(socket.SHUT_WR)

    def _send(self, connection: socket.socket, content: bytes) -> None:
        try:
            connection.send(content)
        except OSError:  # it was cut: another one comes in its place
            self._connections.pop(connection.fileno(), None)
            connection.close()

    def _drip(self) -> None:
        while not self._is_over.wait(DRIP_SECONDS):
            for connection, kind in list(self._connections.values()):
                if kind in (1, 2, 3):
                    self._send(connection, b"x")
            ready = select.poll()
            for number, (_, kind) in self._connections.items():
                if kind != 4:
                    ready.register(number, select.POLLIN | select.POLLHUP)
            for number, _ in ready.poll(0):
                connection, _ = self._connections[number]
                try:
                    gone = not connection.recv(65_536)
                except OSError:
                    gone = True
                if gone:
                    del self._connections[number]
                    connection.close()
            while len(self._connections) < CROWD and not self._is_over.is_set():
                self._one()

    def end(self) -> None:
        self._is_over.set()
        self._dripping.join()
        for connection, _ in self._connections.values():
            connection.close()


def main() -> None:
    """Try it."""
    make_network()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    services = Services()
    tokens = {kind: new_token(kind) for kind in KINDS}
    file, own = Path(services.directory, "tokens"), Path(services.directory, "token")
    try:
        for path, lines in ((file, [line_of(token) for token in tokens.values()]), (own, [tokens[WRITE]])):
            path.touch(0o600)
            path.write_text("".join(f"{line}\n" for line in lines))
        services.query = Query(services.server_url, timeout=ANSWER_SECONDS, token=tokens[READ])
        everywhere = ("--listen", f"tcp:{services.server_port}:interface=0.0.0.0", "--url", f"http://{HERE}:{services.server_port}")
        services.start_server(*everywhere, "--tokens", str(file), "--insecure")
        services.start_agent("--token", str(own))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096) if most != resource.RLIM_INFINITY else 4096, most))
        crowd = Crowd(services.server_port)
        found: Counter[str] = Counter()
        for _ in range(20):
            found[f"here {ask(services.server_port, '127.0.0.1', '127.0.0.1', tokens[READ])}"] += 1
            found[f"friend {ask(services.server_port, FRIEND, HERE, tokens[READ])}"] += 1
        services.run("-c", RECORD).check_returncode()
        until(lambda: services.query.aggregates(name="hits").get("hits", {}).get("1d", {}).get("count") == 100)
        status = services.query.status()
        crowd.end()
        print(json.dumps({"found": found, "listening": status["listening"], "problems": status["problems"], "made": crowd.made}))
    finally:
        services.stop()


if __name__ == "__main__":
    main()
