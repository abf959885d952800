"""The OpenAI Realtime protocol as a dialect.  Read it in this order: settings (what a session may be told), items (a
conversation), response (one answer, event by event), dialect (a client's events), edits (those that change the items),
recorded (audio in items), asked (those that want the agent to speak, or not to), names (beta's), kept (for another
process), chat (what a language model gets), caller (a client of our own).
"""
from .caller import OpenAIRealtimeCaller
from .dialect import OpenAIRealtime

__all__ = ["OpenAIRealtime", "OpenAIRealtimeCaller"]
