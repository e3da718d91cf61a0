"""Attacks of one caller and of one upstream, and what a stranger's stream notices of them.

Every attack is bounded in count and time, and goes to servers that this package starts on loopback.
"""
