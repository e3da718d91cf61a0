"""The command: run an example on this machine, until Ctrl+C."""

import os
import secrets
import signal
import sys
import time

from examples.composition import NAMES
from examples.processes import Unable, running


def main(*words: str) -> int:
    """Run the example of this name; returns the exit code."""
    if len(words) != 1 or words[0] not in NAMES:
        print(f"python -m examples {'|'.join(NAMES)}", file=sys.stderr)
        return 2
    for each in (signal.SIGINT, signal.SIGTERM):  # A shell's `&` has the first ignored.
        signal.signal(each, signal.default_int_handler)
    try:
        with running(words[0], {"SECRET": secrets.token_hex(32), **os.environ}) as example:
            print(f"{words[0]} is at {example.url}  (Ctrl+C ends it)")
            print(f"its gateway's store is GATEWAY_REDIS_URL={example.redis_url}", flush=True)
            while True:
                example.check()
                time.sleep(0.5)
    except Unable as error:
        print(f"{words[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
