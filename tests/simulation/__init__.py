"""The gateway's own code on a virtual clock: many replicas, one Redis, and everything that fails.

`python -m tests.simulation --schedules 100000` is the long run, `test_schedules.py` the short one.

Nothing of the gateway is replaced. Its event loop is another one, whose time jumps to the next
timer and whose `create_connection` leads to a simulated network: a Redis that runs the real scripts
in a real Lua, and an upstream that counts what is paid for. So every layer down to the bytes on the
socket is under test, and a seed is a schedule that can be replayed.
"""
