"""Tests of gateway/serve."""
