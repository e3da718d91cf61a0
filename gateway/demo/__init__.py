"""A page to try it with, and an upstream that pretends."""
