"""The gateway's URLs."""
