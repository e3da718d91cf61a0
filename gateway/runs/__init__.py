"""The tasks that own the one upstream call of a stream, from the claim to the end."""
