"""Faults: real processes under a seeded schedule of everything that can fail, and an oracle.

`python -m tests.faults --streams 500 --faults 100 --seed N` is the long run; `test_faults.py` holds
a short one. The same seed gives the same schedule; what it meets differs by a few milliseconds.

    schedule   which stream asks for what, and what goes wrong when: all from the seed
    upstream   a completion endpoint that counts its calls and fails as the schedule says
    plays      how each call is answered
    kept       answers that go on without their connection, and are asked for again
    viewer     a bare EventSource on a raw socket, that can be cut, stop reading, leave and return
    nginx      our template, in front of the replicas
    redis      one Redis with an append-only file, or a master with replicas and three sentinels
    world      replicas, nginx and Redis, and the faults of processes
    pages      one page per stream: POST, viewers, DELETE
    followers  pages that follow several streams over one connection
    story      all that is known of one stream, and of what was injected
    channels   messages that are pushed to two users all the time, and what their pages got
    usage      what is booked for each user, and how many streams it ran at once
    oracle     what each viewer got against what was sent, and what was injected
    harness    plays a schedule in a world and makes the report
"""
