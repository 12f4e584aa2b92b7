"""Predict how long a run takes on an engine: measure speeds, assume lengths of traces, simulate, recommend.

`simulator`, `workload`, `lengths` and `costs` are pure and seeded. They use the method's lineage and the engine's own
scheduling policy (`backends.policy`), and no engine, file or clock.
"""
