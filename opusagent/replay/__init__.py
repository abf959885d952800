"""Replay: a call once more from its journal.

`tape` reads it, `rerun` makes its decisions again one by one, `whatif` with other settings; `rehearse` is the command.
"""
