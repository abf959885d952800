"""The engine `realtime`: speech to speech, over somebody else's endpoint; `stages` is what the pipeline sees of it."""
