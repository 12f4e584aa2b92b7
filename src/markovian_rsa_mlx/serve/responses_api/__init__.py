"""`/v1/responses`: the Responses protocol of OpenAI, over the same path as a chat."""
