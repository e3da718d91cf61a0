"""Benchmarks: this gateway and its peers, side by side on one machine in one run."""
