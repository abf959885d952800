"""RFC 6455 conformance, asked of a server by its URL alone.

What it is: a table of cases (cases/), each a short script of octets to send and of answers that must come back, and
a runner that plays them over real sockets.  What it is not: a client library, or a test of this project's code: it
imports none of it.  The rule: a case says what the standard says.  What the standard allows but a strict server would
not do is `tolerated`, never `ok`, and the suite can fail (broken.py proves it).

    python -m tests.conformance ws://127.0.0.1:9000/ws/echo
"""
