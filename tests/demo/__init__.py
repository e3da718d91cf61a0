"""Tests of gateway/demo."""
