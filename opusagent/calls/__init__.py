"""Calls: one conversation each, and the parts that it is made of.

`call` wires them: the `ear` hears, the `mouth` speaks a turn of the `pipeline` and sends it `outbound`, the
`transaction` keeps what may still be taken back, the `ledger` writes the receipts, the `journal` all that a replay
needs, `stereo` the recording.  Besides words there are keys (`keypad`), an `interruption`, and `silence`; a `bystander`
is the other side of a conversation of others, and `filled` what of the caller's audio is silence of ours.  `earlier` is
where a call stood elsewhere, `departure` how it leaves, `meter` what it costs, and what goes `unattended` needs no
Python.  Two other kinds of calls have the same parts: `relay`, whose platform recognises and speaks itself (what it
speaks is a `script`), and `realtime`, which a client leads; both are kept by `writeahead` before anything goes out.
`kinds` says which is whose.  An `echo` has none of them.
"""
