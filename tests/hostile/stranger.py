"""The stranger: reads one steady stream in a process of its own, so that nobody's work delays it.

`python -m tests.hostile.stranger HOST PORT PATH COOKIE`; at the end of its standard input it says
how many events came, and the longest time between two of them.
"""

import json
import select
import socket
import sys
import time


def main() -> None:
    """Read until the standard input ends or nothing more comes."""
    host, port, path, cookie = sys.argv[1:]
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n"
            "Accept: text/event-stream\r\n\r\n".encode()
        )
        events, gap, before = 0, 0.0, 0.0
        while True:
            readable, _, _ = select.select([connection, sys.stdin], [], [], 30)
            now = time.monotonic()
            if sys.stdin in readable or not readable:
                break
            got = connection.recv(65536)
            if not got:
                break
            if b"data:" in got:
                gap, before = max(gap, now - before if before else 0.0), now
                events += got.count(b"data:")
                if events == 1:
                    print("begun", flush=True)
        if before:
            gap = max(gap, time.monotonic() - before)
        print(json.dumps({"events": events, "gap": gap}), flush=True)


if __name__ == "__main__":
    main()
