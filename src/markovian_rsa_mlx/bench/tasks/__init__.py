"""The problems of benchmarks, and the scoring of answers.

The name of a task is a known set (`aime-2025`), an id of the hub (`owner/name`, `owner/name@revision`), a file or a
folder, a task of the embedded reasoner, or a reasoning-gym data set.
"""
