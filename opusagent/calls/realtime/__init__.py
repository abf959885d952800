"""A call that a client leads, in the OpenAI Realtime protocol: `call` is the Call of all other dialects, and what is
here is what such a client may ask of it.

What it sends waits in the `inbox`, and what it `asks` is done; an `assistant` is the agent that it leads, an `aside` a
response beside the conversation, and what is `recorded` in an item is recognised beside the line.
"""
