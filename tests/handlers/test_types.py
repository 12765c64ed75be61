"""Every Type that Taba ships with keeps the contract."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from taba.handlers.counter_group import CounterGroup
from taba.handlers.noop import Noop
from taba.handlers.testing import HandlerContract
from taba.handlers.totals_counter import TotalsCounter
from taba.handlers.updown import UpDown


class CounterGroupTests(HandlerContract, SynchronousTestCase):
    handler = CounterGroup()


class TotalsCounterTests(HandlerContract, SynchronousTestCase):
    handler = TotalsCounter()


class UpDownTests(HandlerContract, SynchronousTestCase):
    handler = UpDown()


class NoopTests(HandlerContract, SynchronousTestCase):
    handler = Noop()
