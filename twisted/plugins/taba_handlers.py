"""Taba's own Handlers, found the same way as anybody's. Nothing is imported before a Server looks them up."""

from taba.handlers.lazy import LazyHandler

counter_group = LazyHandler("taba.handlers.counter_group:CounterGroup")
percentile_group = LazyHandler("taba.handlers.percentile_group:PercentileGroup")
percentile_counter = LazyHandler("taba.handlers.percentile_counter:PercentileCounter")
totals_counter = LazyHandler("taba.handlers.totals_counter:TotalsCounter")
updown = LazyHandler("taba.handlers.updown:UpDown")
gauge = LazyHandler("taba.handlers.gauge:Gauge")
noop = LazyHandler("taba.handlers.noop:Noop")
