"""The engine `openai`: it transcribes (`stt`, and `live` while the caller speaks), answers (`llm`), speaks (`tts`)."""
