"""Attacks on the real server process, while well-behaved calls run beside them.

What it is: the rows A1 to A14 and B1 to B14 of the attack table, each a coroutine that attacks and says what the server
must answer; well-behaved calls in a process of their own; and the pass line, which is fixed here (siege.py).  What it
is not: a load test.  The rule: an attacker may learn a close code or a status, and nobody else may learn anything.
"""
