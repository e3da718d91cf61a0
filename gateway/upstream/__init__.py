"""Asking for a completion, and what comes back."""
