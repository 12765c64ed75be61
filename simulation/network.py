"""The network between Agents and Servers: what is sent is delivered late, in another order, twice, or never; and so are answers.

The Agent's real Forwarder sends with treq over the IAgent here; what arrives is bytes. A request that was delivered once more, or after its
sender gave it up, or died, is decided by the Server as any other, and its answer goes to nobody.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

from hyperlink import EncodedURL
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent
from zope.interface import implementer

from simulation.clockwork import Clockwork, Process

FIRST_SECONDS = 0.0005  # the least that a message takes
LAST_SECONDS = 0.02  # and the most, where nothing is wrong
LATE_SECONDS = 45.0  # the most where messages come late: longer than an Agent waits
VERY_LATE_SECONDS = 160.0  # for one in five of them: longer than an Agent keeps a stream open of which nothing is left

Handle = Callable[[str, bytes], "Deferred[tuple[int, dict[str, str], bytes]]"]


class Weather:
    """How the network is now: shares of messages."""

    def __init__(self) -> None:
        self.lost = self.repeated = self.late = self.stale = 0.0

    def clear(self) -> None:
        self.lost = self.repeated = self.late = self.stale = 0.0


class Network:
    """The hosts by their URLs: who listens there, and whether it can be reached."""

    def __init__(self, world: Clockwork):
        self.world = world
        self.weather = Weather()
        self.listening: dict[str, tuple[Process, Handle]] = {}
        self.cut: set[str] = set()
        self.without_store: set[str] = set()  # Servers from which no store can be reached, by name
        self.last_arrival = 0.0  # of what is on its way

    def seconds(self) -> float:
        """How long the next message is on its way."""
        random = self.world.random
        if self.weather.late and random.random() < self.weather.late:
            self.world.fired["message late"] += 1
            late = random.uniform(LAST_SECONDS, LATE_SECONDS) if random.random() < 0.8 else random.uniform(LATE_SECONDS, VERY_LATE_SECONDS)
            self.last_arrival = max(self.last_arrival, self.world.now + late)
            return late
        return random.uniform(FIRST_SECONDS, LAST_SECONDS)

    def is_lost(self) -> bool:
        if self.weather.lost and self.world.random.random() < self.weather.lost:
            self.world.fired["message lost"] += 1
            return True
        return False

    def is_repeated(self) -> bool:
        if self.weather.repeated and self.world.random.random() < self.weather.repeated:
            self.world.fired["message repeated"] += 1
            return True
        return False


@implementer(IAgent)
class Sender:
    """The IAgent of one process, and what its Forwarder asks of the connections that are kept."""

    was_kept = False
    is_fresh = False

    def __init__(self, network: Network, process: Process):
        self._network, self._process = network, process
        self._kept: set[str] = set()  # where a request was answered, and its connection is kept for the next

    def request(self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: Any = None) -> Deferred[Any]:
        answered: Deferred[Any] = Deferred(lambda _: None)
        network, world = self._network, self._network.world
        if not self._process.is_alive:
            return answered
        body = bodyProducer._inputFile.getvalue() if bodyProducer is not None else b""
        if headers is not None and headers.hasHeader("content-encoding"):
            body = zlib.decompress(body)
        url, _, path = uri.decode().partition("/v1/")
        self.was_kept = url in self._kept and not self.is_fresh
        if self.was_kept and network.weather.stale and world.random.random() < network.weather.stale:
            world.fired["kept connection closed"] += 1  # by its Server, before any byte of this came
            self._kept.discard(url)
            world.later(network.seconds(), self._process, fail, answered, ConnectionLost())
            return answered
        if url in network.cut or url not in network.listening:
            world.fired["server not reached"] += 1
            self._kept.discard(url)
            world.later(network.seconds(), self._process, fail, answered, ConnectionRefusedError())
            return answered
        if network.is_lost():
            if world.random.random() < 0.5:  # else nothing is heard until the sender gives up
                world.later(network.seconds(), self._process, fail, answered, ConnectionLost())
            return answered
        world.later(network.seconds(), None, self._arrive, url, path, body, answered)
        if network.is_repeated():
            world.later(network.seconds() * 2, None, self._arrive, url, path, body, None)
        return answered

    def _arrive(self, url: str, path: str, body: bytes, answered: Deferred[Any] | None) -> None:
        network, world = self._network, self._network.world
        found = network.listening.get(url)
        if found is None or url in network.cut:
            world.later(network.seconds(), self._process, fail, answered, ConnectionLost())
            return
        process, handle = found
        if process.wakes > world.now:  # it lies in the socket of a process that is stopped
            world.later(process.wakes - world.now, None, self._arrive, url, path, body, answered)
            self._network.last_arrival = max(self._network.last_arrival, process.wakes)
            return
        world.steps += 1
        world.digest = zlib.crc32(body, world.digest)

        def decide() -> None:
            handle(path, body).addCallbacks(lambda answer: self._send_back(process, url, answer, answered), lambda failure: None)

        world.run(process, decide)

    def _send_back(self, server: Process, url: str, answer: tuple[int, dict[str, str], bytes], answered: Deferred[Any] | None) -> None:
        network, world = self._network, self._network.world
        if answered is None or not server.is_alive:
            return
        if network.is_lost():
            world.later(network.seconds(), self._process, fail, answered, ConnectionLost())
            return
        world.later(network.seconds(), self._process, self._deliver, answered, url, answer)

    def _deliver(self, answered: Deferred[Any], url: str, answer: tuple[int, dict[str, str], bytes]) -> None:
        self._network.world.steps += 1
        if not answered.called:
            status, headers, content = answer
            self._kept.add(url)
            answered.callback(Response(status, Headers({name: [value] for name, value in headers.items()}), content))


def fail(answered: Deferred[Any] | None, error: Exception) -> None:
    """No answer comes."""
    if answered is not None and not answered.called:
        answered.errback(Failure(ResponseNeverReceived([Failure(error)])))


class Known(EncodedURL):
    """An address that is ASCII, and taken apart once: a world has few, and asks them often."""

    __slots__ = ("text",)
    text: str

    def to_uri(self) -> Known:
        return self

    def to_text(self, with_password: bool = False) -> str:
        return self.text


@lru_cache(maxsize=1000)
def known(text: str) -> Known:
    """The address that `text` is."""
    made = cast(Known, Known.from_text(text))
    made.text = EncodedURL.from_text(text).to_uri().to_text()
    return made


class Asking(HTTPClient):
    """treq's, which takes no address apart twice."""

    def __init__(self, sender: Sender):
        super().__init__(cast(IAgent, sender))

    def request(self, method: str, url: Any, **options: Any) -> Deferred[Any]:
        return super().request(method, known(url), _stacklevel=3, **options)


class Response:
    """What of a response of twisted.web's client is used."""

    version = (b"HTTP", 1, 1)
    phrase = b""

    def __init__(self, code: int, headers: Headers, content: bytes):
        self.code, self.headers, self.content = code, headers, content
        self.length = len(content)
        self.request = self.previousResponse = None

    def deliverBody(self, protocol: Any) -> None:
        protocol.dataReceived(self.content)
        protocol.connectionLost(Failure(ResponseDone()))
