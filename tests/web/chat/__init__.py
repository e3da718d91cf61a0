"""Tests of gateway.web.chat, module by module."""
