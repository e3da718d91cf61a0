"""Tests of gateway/web/sdk."""
