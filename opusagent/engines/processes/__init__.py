"""Engine processes: what computes for more than a millisecond, away from the loop.

`host` is the worker's side and `process` the other one; between them lie a slot of audio and two rings of `records`.
`vitals` and `delays` say whether one is late, and how late.
"""
