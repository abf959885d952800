"""Trust: whether a request comes from whom it says, for every platform and every scheme.

`auth` asks, `signatures` and `ed25519` compute, `nonces` remember what was used, `ephemeral` keys are lent to browsers,
and `signing` is the other side of it, for simulated callers.  Pure: time and nonces are handed in, no key is kept here.
"""
