"""The engine `openai`: it transcribes (`stt`, and `live` while the caller speaks), answers (`llm`, without its
`thinking` and the function calls that are `written` into it) and speaks (`tts`).
"""
