"""Vitals, logging and what workers record, in this process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import threading
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.client import testing
from taba.frameworks import logging as counting
from taba.frameworks import vitals, working
from taba.names import parse_name
from tests.forking import forked


class Vitals(SynchronousTestCase):
    def setUp(self) -> None:
        self.recorded = testing.capture_for(self)

    def test_memory_descriptors_and_threads_are_those_of_the_process(self) -> None:
        vitals.watch()
        self.addCleanup(vitals.unwatch)
        before = self.recorded.last("process_open_descriptors")
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
        self.recorded.read_functions()
        for descriptor in held:
            os.close(descriptor)
        self.assertEqual(self.recorded.last("process_open_descriptors"), before + 5)
        self.assertGreater(self.recorded.last("process_resident_bytes"), 1 << 20)
        self.assertGreaterEqual(self.recorded.last("process_threads"), 1)

    def test_processor_time_is_counted_and_its_share_told_and_a_forked_childs_begins_at_nothing(self) -> None:
        now, used, process = [100.0], [7.0], [1]
        self.patch(vitals, "monotonic", lambda: now[0])
        self.patch(vitals, "process_time", lambda: used[0])
        self.patch(os, "getpid", lambda: process[0])
        look = vitals._Processor()
        steps = (
            (0.01, 7.01, 1, 0.0),
            (2.0, 8.0, 1, 0.5),
            (2.01, 8.01, 1, 0.5),
            (4.0, 12.0, 1, 2.0),
            (5.0, 0.25, 2, 0.25),
            (6.0, 0.25, 2, 0.0),
        )
        for at, spent, child, ratio in steps:
            now[0], used[0], process[0] = 100.0 + at, spent, child
            self.assertAlmostEqual(look(), ratio, msg=str(at))
        self.assertEqual(self.recorded.values("process_cpu_seconds"), [1.0, 4.0, 0.25])

    def test_a_real_processor_is_watched(self) -> None:
        self.patch(vitals, "LEAST", 0.0)
        vitals.watch()
        self.addCleanup(vitals.unwatch)
        self.assertEqual(self.recorded.count("process_cpu_ratio"), 1)
        while not self.recorded.total("process_cpu_seconds"):
            self.recorded.read_functions()
        self.assertGreater(self.recorded.last("process_cpu_ratio"), 0)

    def test_collections_are_recorded_until_it_ends_and_watching_twice_is_watching(self) -> None:
        vitals.watch()
        vitals.watch()
        gc.collect()
        vitals.unwatch()
        gc.collect()
        self.assertEqual(self.recorded.count("process_gc_seconds", generation=2), 1)
        self.assertEqual(self.recorded.count("process_gc_collected", generation=2), 1)
        vitals.unwatch()

    def test_the_lag_of_a_loop_is_how_late_it_comes_round(self) -> None:
        class Loop:
            now = 100.0
            calls: list[Any]

            def __init__(self) -> None:
                self.calls = []

            def time(self) -> float:
                return self.now

            def call_at(self, when: float, call: Any, *arguments: Any) -> Any:
                self.calls.append((when, call, arguments))
                return self

            def cancel(self) -> None:
                self.calls.clear()

        loop = Loop()
        end = vitals.watch_loop(loop, every=2.0)  # type: ignore[arg-type]
        for late in (0.0, 0.25):
            when, call, arguments = loop.calls.pop()
            loop.now = when + late
            call(*arguments)
        self.assertEqual(self.recorded.values("process_loop_lag_seconds"), [0.0, 0.25])
        end()
        self.assertEqual(loop.calls, [])

    def test_a_real_loop_is_watched(self) -> None:
        async def run() -> None:
            end = vitals.watch_loop(every=0.001)
            while self.recorded.count("process_loop_lag_seconds") < 3:
                await asyncio.sleep(0.001)
            end()

        asyncio.run(asyncio.wait_for(run(), 60))


class Logging(SynchronousTestCase):
    def test_what_is_logged_is_counted_by_level(self) -> None:
        recorded = testing.capture_for(self)
        logger = logging.Logger("shop", logging.INFO)
        handler = counting.install(logger)
        self.assertEqual(logger.handlers, [handler])
        logger.debug("not let through")
        logger.info("one")
        logger.warning("two %s", object())
        logger.error("three")
        logger.error("four")
        for level in range(101, 130):
            logger.log(level, "odd")
        levels = {level: recorded.total("log_records", level=level) for level in ("DEBUG", "INFO", "WARNING", "ERROR", "Level 101")}
        self.assertEqual(levels, {"DEBUG": 0, "INFO": 1, "WARNING": 1, "ERROR": 2, "Level 101": 1})
        self.assertEqual(recorded.total("log_records", level="(other)"), 29 + 3 - counting.MAX_LEVELS)

    def test_nothing_that_logs_is_held_up_and_a_level_has_any_name(self) -> None:
        recorded = testing.capture_for(self)
        handler = counting.Handler()
        logger = logging.Logger("shop")
        logger.addHandler(handler)
        for level, name in ((71, "a\0b"), (72, "\udc80"), (73, "")):
            logging.addLevelName(level, name)
            logger.log(level, "odd")
        assert handler.lock is not None
        with handler.lock:  # as Handler.handle() of newer Pythons takes it
            thread = threading.Thread(target=logger.error, args=("one",))
            thread.start()
            thread.join(60)
            self.assertFalse(thread.is_alive())
        handler.addFilter(lambda record: False)
        logger.error("not let through")
        levels = [parse_name(event.name)[1]["level"] for event in recorded.events]
        self.assertEqual(levels, ["a\\0b", "\\udc80", "", "ERROR"])

    def test_the_root_is_meant_where_none_is_named(self) -> None:
        recorded = testing.capture_for(self)
        handler = counting.install()
        self.addCleanup(logging.getLogger().removeHandler, handler)
        logging.getLogger("shop.orders").critical("out of stock")
        self.assertEqual(recorded.total("log_records", level="CRITICAL"), 1)


class Workers(SynchronousTestCase):
    def setUp(self) -> None:
        self.recorded = testing.capture_for(self)
        self.now = 1000.0
        self.patch(working, "monotonic", lambda: self.now)

    def test_the_busy_share_counts_overlapping_requests_once(self) -> None:
        worker = working.Working("w")
        for step, wait in ((worker.begin, 0.5), (worker.begin, 0.5), (worker.end, 1.0), (worker.end, 2.0)):
            step()
            self.now += wait
        worker.look()
        self.assertEqual(self.recorded.total("w_worker_busy_seconds"), 2.0)
        self.assertEqual(self.recorded.values("w_worker_busy_ratio"), [0.0, 1.0, 1.0, 0.0])
        self.assertEqual((self.recorded.last("w_worker_age_seconds"), self.recorded.total("w_worker_starts")), (4.0, 1))

    def test_a_long_request_is_busy_while_it_lasts(self) -> None:
        worker = working.Working("w")
        worker.begin()
        for _ in range(3):
            self.now += 1.5
            worker.look()
        self.now += 0.5
        worker.look()  # not time yet
        self.assertEqual(self.recorded.values("w_worker_busy_ratio"), [0.0, 1.0, 1.0, 1.0])
        self.assertEqual(self.recorded.total("w_worker_busy_seconds"), 4.5)

    def test_what_spent_the_time_elsewhere_may_say_so(self) -> None:
        worker = working.Working("w")
        self.now += 0.5
        worker.look(0.25)
        self.now += 0.5
        worker.look(0.25)
        self.assertEqual(self.recorded.last("w_worker_busy_ratio"), 0.5)

    def test_a_child_that_is_forked_while_another_thread_counts_a_request_ends_its_own_and_tells_nothing_of_its_parents(self) -> None:
        worker = working.Working("w")
        for _ in range(3):
            worker.begin()
        self.now += 0.5

        def ends() -> None:
            assert worker._under_way == 1, worker._under_way
            self.now += 1.0
            worker.end()
            assert worker._under_way == 0, worker._under_way
            assert self.recorded.values("w_worker_busy_seconds") == [1.0], self.recorded.values("w_worker_busy_seconds")

        with worker._lock:
            code = forked(ends)
        self.assertEqual(code, 0)

    def test_the_backlog_is_what_waits_at_the_sockets(self) -> None:
        listening = socket.create_server(("127.0.0.1", 0), backlog=10)
        self.addCleanup(listening.close)
        own = socket.socket(socket.AF_UNIX)
        self.addCleanup(own.close)
        waiting = [socket.create_connection(listening.getsockname()) for _ in range(3)]
        for each in waiting:
            self.addCleanup(each.close)
        self.assertEqual((working.backlog(listening), working.backlog(own), working.backlog(None)), (3, None, None))
        working.Working("w", [listening, own])
        working.Working("x", [own])
        self.assertEqual((self.recorded.last("w_backlog"), self.recorded.count("x_backlog")), (3.0, 0))
