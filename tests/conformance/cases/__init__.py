"""The table of all cases, one file for each part of the standard.

The rule: a case is a row.  What is sent and what must come back stand beside each other; whatever is repeated over
sizes, opcodes or code points is a comprehension over a named table.
"""

from ..script import Case
from . import closing, control, fragmentation, framing, handshake, head, sizes, utf8

CASES: tuple[Case, ...] = (*handshake.CASES, *head.CASES, *framing.CASES, *control.CASES, *fragmentation.CASES,
                           *utf8.CASES, *closing.CASES, *sizes.CASES)
