"""Ticketed, durable, resumable streaming of LLM completions to a bare EventSource."""

from gateway.app import Gateway
from gateway.config.settings import Settings

__all__ = ["Gateway", "Settings"]
__version__ = "0.1.0"
