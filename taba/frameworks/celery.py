"""For Celery: where tasks are sent, and where they run.

    app = Celery("jobs")
    instrument()

Each process of a worker is a Client of its own.
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import cache
from time import perf_counter, time
from typing import Any

from celery import signals
from celery.exceptions import TimeLimitExceeded, WorkerLostError

from taba import client
from taba.frameworks.serving import Names

PUBLISHED = "taba_published"  # header of a message: when it was sent, in Unix seconds
MAX_TASKS = 1_000  # that have a name of their own
LATEST = 2.0**40  # Unix seconds; beyond any clock
MAX_KINDS = 100  # of exceptions, likewise


@cache
def instrument() -> Tasks:
    """Record tasks of this process, whichever application they are of."""
    return Tasks()


class Tasks:
    """The Tabs `celery_…`, and what fills them: Celery's signals."""

    def __init__(self) -> None:
        self._published = client.counter("celery_tasks_published", description="tasks that were sent")
        self._tasks = client.counter("celery_tasks", description="tasks that ran, by the state in which they ended")
        self._seconds = client.percentile("celery_task_seconds", description="how long tasks ran")
        self._waits = client.percentile(
            "celery_task_wait_seconds", description="from when a task was sent, or was to run, until it ran: by the clocks of both hosts"
        )
        self._retries = client.counter("celery_task_retries", description="tasks that asked to be tried again")
        self._exceptions = client.counter("celery_task_exceptions", description="exceptions that ended tasks")
        self._in_flight = client.updown("celery_tasks_in_flight", description="tasks that run")
        self._names, self._kinds = Names(MAX_TASKS), Names(MAX_KINDS)
        signals.before_task_publish.connect(self._publishing, weak=False)
        signals.task_prerun.connect(self._begins, weak=False)
        signals.task_postrun.connect(self._ended, weak=False)
        signals.task_retry.connect(self._retried, weak=False)
        signals.task_failure.connect(self._failed, weak=False)
        signals.task_revoked.connect(self._revoked, weak=False)

    def _publishing(self, sender: Any = None, headers: Any = None, **rest: Any) -> None:
        if isinstance(headers, dict):
            headers[PUBLISHED] = time()
        self._published.labels(task=self._names.of(str(sender))).inc()

    def _begins(self, task: Any = None, **rest: Any) -> None:
        request = task.request
        self._in_flight.inc()
        request.taba_began = perf_counter()
        sent = request.get(PUBLISHED) or (request.headers or {}).get(PUBLISHED)
        if isinstance(sent, (int, float)) and 1 < sent <= LATEST:  # of a message that anybody may have written
            self._waits.labels(task=self._names.of(task.name)).observe(max(0.0, time() - max(sent, _seconds_of(request.eta))))

    def _ended(self, task: Any = None, state: Any = None, **rest: Any) -> None:
        began = task.request.get("taba_began")
        if began is None or began < self._in_flight.born:
            return  # its beginning was not seen, or a forked child comes to its end as well
        self._in_flight.dec()
        name = self._names.of(task.name)
        self._seconds.labels(task=name).observe(perf_counter() - began)
        self._tasks.labels(task=name, state=str(state)).inc()

    def _retried(self, sender: Any = None, **rest: Any) -> None:
        self._retries.labels(task=self._names.of(sender.name)).inc()

    def _failed(self, sender: Any = None, exception: Any = None, **rest: Any) -> None:
        kind = self._kinds.of(type(exception).__name__)
        self._exceptions.labels(task=self._names.of(sender.name), exception=kind).inc()
        if isinstance(exception, (TimeLimitExceeded, WorkerLostError)):  # the worker's first process tells; the task's own is no more
            self._tasks.labels(task=self._names.of(sender.name), state="FAILURE").inc()

    def _revoked(self, sender: Any = None, **rest: Any) -> None:
        self._tasks.labels(task=self._names.of(sender.name), state="REVOKED").inc()


def _seconds_of(eta: Any) -> float:
    """The time before which a task was not to run; 0 where there is none."""
    if isinstance(eta, str):
        try:
            eta = datetime.fromisoformat(eta.replace("Z", "+00:00"))
        except ValueError:
            return 0.0
    if not isinstance(eta, datetime):
        return 0.0
    return (eta if eta.tzinfo is not None else eta.replace(tzinfo=timezone.utc)).timestamp()
