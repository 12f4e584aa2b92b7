"""Benchmarks: whether the method helps on a task, by how much, and at what cost.

Every run of a benchmark is an ordinary run of the orchestrator with its own audit log, from which all figures derive.
Must not import the command line.
"""
