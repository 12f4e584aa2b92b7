"""The server: Markovian RSA behind the OpenAI protocol.

Knows HTTP, the orchestrator and the folder of trails. Every request is a run of the one shared engine; there is no
second way to generate. Knows nothing of MLX and of how a model came to be loaded.
"""
