"""Tests of gateway/upstream/protocols."""
