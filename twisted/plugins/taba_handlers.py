"""Taba's own Handlers, found the same way as anybody's. Nothing is imported before a Server looks them up, or an
Agent those that fold at the edge."""

from taba.handlers.lazy import LazyHandler

counter_group = LazyHandler("taba.handlers.counter_group:CounterGroup", has_edge=True)
cumulative = LazyHandler("taba.handlers.cumulative:Cumulative")
percentile_group = LazyHandler("taba.handlers.percentile_group:PercentileGroup", has_edge=True)
percentile_counter = LazyHandler("taba.handlers.percentile_counter:PercentileCounter", has_edge=True)
totals_counter = LazyHandler("taba.handlers.totals_counter:TotalsCounter", has_edge=True)
updown = LazyHandler("taba.handlers.updown:UpDown")
gauge = LazyHandler("taba.handlers.gauge:Gauge")
expiry_gauge = LazyHandler("taba.handlers.expiry_gauge:ExpiryGauge")
buffer = LazyHandler("taba.handlers.buffer:Buffer")
cardinality = LazyHandler("taba.handlers.cardinality:Cardinality")
topk = LazyHandler("taba.handlers.topk:TopK")
noop = LazyHandler("taba.handlers.noop:Noop")
