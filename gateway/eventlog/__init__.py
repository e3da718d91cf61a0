"""The log of a stream: written once, read by all who watch."""
