"""Speech, pure: when somebody speaks, whose turn it is, and what goes out when.

`audio` scores the caller's sound (`silero` has the network's weights, `acoustics` knows the agent's own echo),
`turns` decides by a table, at the caller's `pace`; `playout` cuts the reply into frames, and `wording` says which of
its words were heard; `tones` are keys as they sound.  No clock and no socket: time is counted in samples.
"""
