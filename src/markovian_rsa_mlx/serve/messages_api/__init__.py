"""`/v1/messages`: the Messages protocol of Anthropic, over the same path as a chat."""
