"""The engine `embedded`: pocketsphinx hears, flite or espeak-ng speaks.

`stages` is what a worker sees of it; `recogniser` (with its own front end, `cepstra`, the model to match it,
`narrowing`, and an ear for `murmurs`) and `voices` run in engine processes.
"""
