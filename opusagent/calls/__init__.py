"""Calls: one conversation each, and the parts that it is made of.

`call` wires them: the `ear` hears, the `mouth` speaks a turn of the `pipeline`, the `transaction` keeps what may
still be taken back, the `ledger` writes the receipts, the `journal` all that a replay needs.  Two other kinds of
calls have the same parts: `relay`, whose platform recognises and speaks itself, and `realtime`, which a client leads.
"""
