"""For gunicorn, with workers of any kind.

    # gunicorn.conf.py
    from taba.frameworks.gunicorn import *

Whoever has hooks of the same names calls these from them. Requests themselves are the middlewares' affair.
"""

from __future__ import annotations

from typing import Any

from taba import client
from taba.frameworks.working import Working

__all__ = ["child_exit", "post_request", "post_worker_init", "pre_request"]

# made with the configuration: what is wrong with this process's variables is no exception in the arbiter later on
_exits = client.counter("gunicorn_worker_exits", description="workers that are gone")
_workings: dict[int, Working] = {}  # by id of the worker: one, but in tests


def post_worker_init(worker: Any) -> None:
    """In a worker that begins. Its heartbeat, which gunicorn has it send, looks whether it is time to record."""
    _working(worker)


def _working(worker: Any) -> Working:
    """That of a worker; made by its first request where a configuration has a post_worker_init() of its own, which calls none of ours."""
    working = _workings.get(id(worker))
    if working is not None:
        return working
    working = _workings[id(worker)] = Working("gunicorn", worker.sockets)
    beat = worker.notify

    def notify() -> None:
        beat()
        working.look()

    worker.notify = notify
    return working


def pre_request(worker: Any, req: Any) -> None:
    """A request begins."""
    _working(worker).begin()


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """A request is over."""
    _working(worker).end()


def child_exit(server: Any, worker: Any) -> None:
    """In gunicorn's own process: a worker is gone."""
    reason = "timeout" if worker.aborted else "ended"
    _exits.labels(reason=reason).inc()
