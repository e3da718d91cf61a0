"""Tests of gateway/eventlog."""
