"""For pytest: the fixture `recorded`, which captures what a test records.

# conftest.py
pytest_plugins = ["taba.frameworks.pytest"]

# test_shop.py
def test_an_order_is_counted(recorded):
    order()
    assert recorded.total("orders") == 1
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from taba.client.testing import Captured, capture


@pytest.fixture
def recorded() -> Iterator[Captured]:
    """What the test records, in its process: see taba.client.testing."""
    with capture() as captured:
        yield captured
