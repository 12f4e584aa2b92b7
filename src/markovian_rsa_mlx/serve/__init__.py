"""The server: Markovian RSA over the OpenAI chat protocol.

Every request is a run of the one shared orchestrator, an ordinary completion included. Must not import mlx.
"""
