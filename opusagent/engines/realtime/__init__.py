"""The engine `realtime`: speech to speech, over somebody else's endpoint; `stages` is what the pipeline sees of it.

A `conversation` is one call's, over a session of the `reserve`: an `utterance` of the caller's goes in, a `response`
comes back, and `context` is what the session has to know for it.
"""
