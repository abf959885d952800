"""A call that a client leads, in the OpenAI Realtime protocol: `call` is the Call of all other dialects, and what is
here is what such a client may ask of it.
"""
