"""The Agent: finds rings, drains them into batches, keeps the batches until a Server has applied them.

`python -m twisted -n taba-agent` runs it; `taba.agent.service.makeService` wires it.
"""
