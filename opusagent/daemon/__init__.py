"""The daemon: workers under a supervisor that outlives them, and successors that take over without a pause.

`serve` is the command.  The `supervisor` starts and replaces workers, talks to them (`control`) and to systemd
(`notify`), and hands everything to the next one (`succession`) when `upgrade` asks.
"""
