"""The problems of benchmarks, and how an answer is scored.

A task is named by: a set that is known here (`aime-2025`), an id of the hub (`owner/name`, `owner/name@revision`), a
file or a folder, one of the embedded reasoner's, or a reasoning-gym data set.
"""
