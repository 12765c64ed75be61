"""A gate between an Agent and its Server: envelopes go through one by one, as a test says; everything else at once."""

from __future__ import annotations

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.patience import PATIENCE_SECONDS

LOOK_SECONDS = 0.1  # between two looks whether a gate is open
HOPS = ("connection", "transfer-encoding", "content-length", "host")  # headers that are between two hosts, or made anew


class Gate:
    """Between an Agent that is told `url` and the Server at `port`. It is open until `shut`."""

    def __init__(self, port: int):
        self.port = port
        self.passed = 0  # envelopes that were let through since it was shut, and answered
        self._places = threading.Semaphore(0)
        self._is_open = threading.Event()
        self._is_open.set()
        self._count = threading.Lock()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                gate.pass_on(self, b"")

            def do_POST(self) -> None:
                gate.pass_on(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nobody reads it."""

        self._listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._listening.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._listening.server_address[1]}"
        self._thread = threading.Thread(target=self._listening.serve_forever, daemon=True)
        self._thread.start()

    def shut(self) -> None:
        """From now on an envelope waits until `let_through` names one more."""
        self._is_open.clear()

    def let_through(self) -> None:
        """One more envelope goes through."""
        self._places.release()

    def open(self) -> None:
        """Nothing waits any more."""
        self._is_open.set()

    def close(self) -> None:
        self.open()
        self._listening.shutdown()
        self._listening.server_close()

    def pass_on(self, asked: BaseHTTPRequestHandler, body: bytes) -> None:
        """Have the Server answer this; nothing is answered where it is not there."""
        is_envelope = asked.path == "/v1/envelopes"
        if is_envelope:
            self._wait_for_place()
        if asked.path == "/v1/servers":
            status, headers, answer = 200, [("Content-Type", "application/json")], json.dumps([{"url": self.url}]).encode()
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
            try:
                connection.request(
                    asked.command, asked.path, body or None, {**_kept(asked.headers.items()), "Host": f"127.0.0.1:{self.port}"}
                )
                answered = connection.getresponse()
                status, headers, answer = answered.status, list(_kept(answered.getheaders()).items()), answered.read()
            except OSError:
                asked.close_connection = True
                return
            finally:
                connection.close()
        asked.send_response(status)
        for name, value in headers:
            asked.send_header(name, value)
        asked.send_header("Content-Length", str(len(answer)))
        asked.end_headers()
        asked.wfile.write(answer)
        if is_envelope:
            with self._count:
                self.passed += 1

    def _wait_for_place(self) -> None:
        while not self._is_open.is_set() and not self._places.acquire(timeout=LOOK_SECONDS):
            pass  # it may be open by now


def _kept(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers if name.lower() not in HOPS}
