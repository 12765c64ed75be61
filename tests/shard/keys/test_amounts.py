"""Numbers as a server takes them: what a caller gives, what a key holds, what they come to."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.shard.keys import amounts
from taba.shard.servers.connection import TransactionRefused

ANY_NUMBER = st.integers() | st.floats() | st.integers(-(10**400), 10**400)


class AmountTests(SynchronousTestCase):
    @given(ANY_NUMBER)
    @example(10**400)  # which no float holds
    @example(-(10**400))
    @example(10**5000)  # which Python does not write, either
    @example(int(1.7976931348623157e308))
    @example(math.inf)
    @example(math.nan)
    def test_a_number_is_a_finite_float_or_a_value_error_that_names_what_takes_it(self, number: float) -> None:
        try:
            found = amounts.finite("incrbyfloat of 'f'", number)
        except ValueError as error:
            self.assertRegex(str(error), "^incrbyfloat of 'f' takes a .*number")
            self.assertLess(len(str(error)), 200)
        else:
            self.assertTrue(math.isfinite(found))
            self.assertEqual(found, float(number))
            self.assertEqual(float(amounts.written(found)), found)

    @given(ANY_NUMBER | st.booleans() | st.text(max_size=5) | st.none())
    @example(2**63 - 1)
    @example(2**63)
    @example(-(2**63) - 1)
    @example(10**5000)
    @example(True)
    def test_a_whole_number_has_64_bits_or_is_an_error_that_names_what_takes_it(self, number: object) -> None:
        is_whole = type(number) is int and -(2**63) <= number < 2**63
        try:
            found = amounts.whole("incr of 'n'", number)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            self.assertFalse(is_whole)
            self.assertRegex(str(error), "^incr of 'n' takes a whole number")
        else:
            self.assertTrue(is_whole)
            self.assertEqual(found, number)

    @given(
        st.none() | st.binary(max_size=8) | st.from_regex(rb"[+-]?[0-9]{1,400}(\.[0-9]{0,5})?(e[+-]?[0-9]{1,4})?", fullmatch=True),
        st.floats(allow_nan=False, allow_infinity=False),
    )
    @example(b"1" + b"0" * 400, 1.0)
    @example(b"1e400", -1e308)
    @example(b"inf", -1.0)
    @example(b"1.5e308", 1.5e308)
    @example(b"1" * (amounts.MAX_NUMBER_BYTES + 1), 1.0)
    @example(b"0." + b"1" * (amounts.MAX_NUMBER_BYTES - 2), 1.0)
    def test_a_sum_is_finite_or_refused_with_the_name_of_its_key(self, before: bytes | None, amount: float) -> None:
        try:
            total = amounts.finite_sum("'f'", before, amount)
        except TransactionRefused as error:
            self.assertRegex(str(error), "^'f' (is no number|holds b'.*it would be no finite number)")
        else:
            self.assertTrue(math.isfinite(total))
            self.assertEqual(total, float(before or 0) + amount)

    @given(
        st.none() | st.binary(max_size=4) | st.integers(-(2**64), 2**64).map(lambda number: b"%d" % number),
        st.integers(-(2**63), 2**63 - 1),
    )
    @example(b"9223372036854775807", 1)
    @example(b"9223372036854775808", -1)
    @example(b"-9223372036854775808", -1)
    @example(b"-0", 1)
    @example(b"007", 1)
    @example(b" 7", 1)
    @example(b"7\n", 1)
    @example("٣".encode(), 1)
    @example(b"1" * 5000, 1)
    def test_a_counter_stays_in_its_bits_or_is_refused_with_its_name(self, before: bytes | None, amount: int) -> None:
        try:
            total = amounts.whole_sum("'n'", before, amount)
        except TransactionRefused as error:
            self.assertRegex(str(error), "^'n' (is no counter|holds -?[0-9]+, and [+-][0-9]+ would leave)")
        else:
            self.assertTrue(-(2**63) <= total < 2**63)
            self.assertEqual(b"%d" % (total - amount), before or b"0")

    @given(ANY_NUMBER)
    @example(0.001)
    @example(0.0009)
    @example(1e9)
    @example(1e9 + 1)
    @example(10**5000)
    def test_a_stay_is_from_a_millisecond_to_thirty_years(self, seconds: float) -> None:
        try:
            said = amounts.milliseconds("expire of 'a'", seconds)
        except ValueError as error:
            self.assertFalse(0.001 <= seconds <= 1e9)
            self.assertRegex(str(error), "^expire of 'a' takes")
        else:
            self.assertTrue(1 <= int(said) <= 10**12)
