"""Servers that nobody here wrote, too large for the suite: LiteLLM's, `transformers serve`."""
