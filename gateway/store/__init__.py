"""Redis: its keys, connections and scripts, and the ways to send."""
