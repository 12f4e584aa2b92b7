"""The server: Markovian RSA over the protocols of OpenAI and Anthropic.

Every request is a run of the one shared orchestrator, an ordinary completion included. Must not import mlx.
"""
