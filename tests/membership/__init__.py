"""Tests of gateway/membership."""
