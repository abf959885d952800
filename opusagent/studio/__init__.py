"""The studio: what all calls of a worker share, made before the first of them.

`studio` itself holds the flows and the engines, `prompts` what is spoken ahead, `clips` the recordings that flows
play, and `tools` runs what flows may call.
"""
