"""What a Handler is: the interfaces. `taba.handlers.base` has the classes that implement them.

1. A Handler is stateless: all that it knows about a Tab is in the State that it is given.
2. A Handler never reads a clock: `now` (Unix seconds) is passed in.
3. A fold never changes its Events; it may change the State that it was given, and returns the State that holds.
4. Projections and Aggregates are dictionaries of JSON values; keys that begin with `_` carry what `aggregate` needs, and no
   answer shows them.
"""

# mypy: disable-error-code="misc,no-untyped-def"
# (methods of a zope interface have no self and no types)

from __future__ import annotations

from zope.interface import Attribute, Interface


class IHandler(Interface):
    """A way to aggregate. `Handler` implements this, with defaults for all but four methods."""

    type = Attribute("The Type that this Handler maps to: a letter and up to 63 more letters, digits or _.")
    version = Attribute("The version of its dumps, 1 … 65535; a State of a greater version is never touched.")

    absolute = Attribute(
        """Whether a ring's events come as rows `[ring id, position, sum]` (see `taba.batch`) instead of one by one, so that what a process
        added is gone when it dies. Posted events come one by one all the same."""
    )

    def new_state():
        """The State of a (Client, Tab) with no Event."""

    def fold(state, events, now):
        """The State after `events` (see `Events`). May change `state`; never changes `events`."""

    def project(state, now):
        """The State as it is at `now`, as a dictionary of JSON values. Never changes `state`."""

    def aggregate(projections):
        """Several Projections (a sequence, at least one; Aggregates too) combined into one dictionary of the same shape."""

    def render(projection):
        """A Projection or Aggregate as one line of text, for people."""

    def dump(state):
        """The State as bytes."""

    def load(content):
        """The State from the bytes that `dump` gave. Raises for bytes that are none."""

    def upgrade(content, version):
        """The State (as `load` would give it) from bytes that an older `version` dumped. Raises where it cannot."""

    def prunable(state, now):
        """Whether the State has nothing more to say, so that it may be deleted."""


class IOptional(Interface):
    """What a Handler may have besides; None, or no such attribute, says that it does not."""

    merge = Attribute(
        """None, or merge(states): the State of several Clients together. What it projects is the Aggregate of theirs.

        With it, States of vanished Clients become one State of the Client `_retired`, so that totals never fall.
        """
    )

    samples = Attribute(
        """None, or samples(projection): a list of `Sample` (suffix, labels, value, kind) of a Projection or Aggregate, for exporters.

        The Tab `bids` with a Sample ("_count", {"window": "1m"}, 17, "gauge") is shown as `bids_count{window="1m"} 17`. Never a value
        that is None; no two with the same suffix and labels.
        """
    )

    history = Attribute(
        """None, or history(states, now): the slots and all-time figures of any number of States, as a `History`.

        `now` is when one asks, never a range's end. Rates, charts, heat maps, resampling and merging over Clients are made from it outside
        Handlers. The counts of a State's slots add up to at most its all-time count.
        """
    )

    shown = Attribute(
        """The figures (`taba.series.FIGURES`) that exporters and PromQL show of the Type, or None: then its `samples`, as they are now.

        `total` and `events` take `count` and `total` of a `history`, or of a Projection; `distribution` bins besides.
        """
    )

    detail = Attribute(
        """None, or detail(state, now): the Projection with the slots from which its figures are made, in keys that answers show.

        `aggregate` takes these as well, and keeps the slots.
        """
    )

    pairs = Attribute(
        """None, or, of an array Handler, what an Event's value may be besides a number: "times", for `[value, times]`, or "start", for
        `[running total, start]`. Then the `values` of `fold_array` may be of shape (n, 2); see `taba.handlers.numbers`.
        """
    )

    edge = Attribute(
        """None, or, of an array Handler, the version of States that are folded at the edge, before they travel.

        Then it has `edge_array(rows, times, values, total)`, which gives a dump for each column, and `edge_columns(starts, times, values)`,
        which does where columns stand one after the other; `merge_array(states, rows, dumps, now)`,
        which adds them to the States of `rows` and returns the states, as if their Events had been folded there; and `count_array(dumps)`,
        how many Events are in each (int64). The last two raise as `load_array` does for what is no such dump.
        """
    )

    aggregate_array = Attribute(
        """None, or, of an array Handler, aggregate_array(states, parts, groups, total, now): the Aggregates of `total` groups of rows.

        `groups` (int64) says for each row which group it belongs to; `states` and `parts` as in `project_array`. The same as `aggregate`
        of the rows' Projections, without making one of each; a group without rows has that of a new State.
        """
    )


class IArrayHandler(IHandler):
    """A Handler that folds all States of its Type, and all their Events, in one call.

    A State may be divided into a main part, which each cycle reads and writes, and `further_parts` others, which are read
    only when a main part outgrows its bound. `states` is whatever `load_array` returns (one object for all rows). After any exception
    it is undefined: throw it away, load again, and go on one row at a time to find the row that is to blame.
    """

    further_parts = Attribute("How many further parts a State has at most; 0 for one that is not divided.")

    def load_array(dumps):
        """The states of a list of main parts (bytes), one row each; b"" is a new State.

        Raises ValueError naming the first row that is no State; nothing is changed then.
        """

    def fold_array(states, rows, times, values, now):
        """Fold Events into `states` and return the states (the same object or another).

        `rows` (int64), `times`, `values` (float64) are arrays of equal length, in ring order per row; `rows` indexes `states`.
        """

    def spilling(states):
        """The rows (int64 array) whose main parts have outgrown their bound: `spill` them before `dump_array`."""

    def spill(states, rows, parts):
        """Move what the main parts of `rows` hold too much of into their further parts.

        `parts`: for each of `rows`, its `further_parts` old further parts as bytes (b"" where absent). Returns the new ones
        in the same shape. The main parts in `states` shrink. The time is the `now` of the last `fold_array`.
        """

    def dump_array(states):
        """The main parts as a list of bytes, one a row."""

    def project_array(states, parts, now):
        """The Projections, one a row. `parts`: for each row its further parts (b"" or missing where absent)."""
