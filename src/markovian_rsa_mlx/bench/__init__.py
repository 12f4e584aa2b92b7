"""Benchmarks: does the method help on a task, by how much, at what cost.

Stands on the orchestrator. Every run of a benchmark is an ordinary run with its own trail; all figures are read
off the trails. Knows nothing of the command line.
"""
