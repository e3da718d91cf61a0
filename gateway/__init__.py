"""Ticketed, durable, resumable streaming of LLM completions to a bare EventSource."""

__version__ = "0.1.0"
