"""Tests of gateway/demo/pretend."""
