"""The other end of the line: simulated callers, and the commands that show what they measured.

A `caller` hears and speaks, a `telephone` is its WebSocket (`bareline`, where there is none; `texting`, where the
platform passes text; a `probe` says nothing and times its frames), `people` is who they are.  `commands` has `call`,
beside it `demo` and `latency`, which may run a `localserver`; `terminal` shows figures, and `timeline` draws what was
said.
"""
