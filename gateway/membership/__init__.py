"""Which replicas live, and what they suspect of each other."""
