"""The other end of the line: simulated callers, and the commands that show what they measured.

A `caller` hears and speaks, a `telephone` is its WebSocket (`texting`, where the platform passes text); `commands`
has `call`, beside it `demo` and `latency`, and `timeline` draws what was said.
"""
