"""Chat: the command of that name: a preset asked from a terminal, here or at a gateway."""
