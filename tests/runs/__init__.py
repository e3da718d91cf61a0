"""Tests of gateway/runs."""
