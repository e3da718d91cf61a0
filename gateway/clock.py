"""Clock: the time that waits are measured by. It never jumps."""

import asyncio


def now() -> float:
    """Return the time of the running event loop in seconds."""
    return asyncio.get_running_loop().time()
