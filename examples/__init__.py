"""Examples: small apps with the gateway beside them. `python -m examples NAME` runs one."""
