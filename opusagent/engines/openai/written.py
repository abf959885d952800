"""A function call that a model writes into its text: its server does not read the model's own way of calling functions,
or the model has left that way.

It knows text only.  The rules: nothing of a call is spoken, nor what follows it; it is looked for only where functions
were offered; and what it calls is as little trusted as any other call (flow/dialogue.py).
"""
import json
import re

from ...flow import FunctionCall

# Qwen and Hermes, Llama, Mistral
MARKS = ("<tool_call>", "<function=", "<|python_tag|>", "[TOOL_CALLS]")
MARK = re.compile("|".join(map(re.escape, MARKS)))
BEGINNINGS = tuple(mark[:length] for mark in MARKS for length in range(len(mark) - 1, 0, -1))
NAMED = re.compile(r"<function=([\w.-]+)>")
VALUE = re.compile(r"<parameter=(\w+)>\s*(.*?)\s*</parameter>", re.DOTALL)
JSON = json.JSONDecoder()


class Written:
    """One answer's.  feed() what comes; what is returned is the text around it."""

    __slots__ = ("source", "_held", "_head")

    def __init__(self):
        self.source = ""            # the call and all after it; "": there is none yet
        self._held = ""             # what may be the beginning of a mark
        self._head = True           # nothing but white space has come

    def feed(self, piece: str) -> str:
        """The text in the next piece."""
        if self.source:
            self.source += piece
            return ""
        if not self._held and not self._head and "<" not in piece and "[" not in piece:
            return piece
        text = self._held + piece
        place = self._place(text)
        self._head = self._head and not text.strip()
        if place is not None:
            self.source, self._held = text[place:], ""
            return text[:place]
        self._held = next(filter(text.endswith, BEGINNINGS), "")
        return text[:len(text) - len(self._held)]

    def _place(self, text: str) -> int | None:
        """Where in it a call begins: at a mark, or where the whole text is JSON."""
        if self._head and text.lstrip().startswith("{"):
            return text.index("{")
        found = MARK.search(text)
        return found.start() if found else None

    def finish(self) -> str:
        """What was held, and was no mark."""
        text, self._held = self._held, ""
        return text

    @property
    def call(self) -> FunctionCall | None:
        """What is called, the first one; None where that cannot be read."""
        name = NAMED.search(self.source)
        begins = self.source.find("{", name.end() if name else 0)
        try:
            found = JSON.raw_decode(self.source, begins)[0] if begins >= 0 else None
        except (ValueError, RecursionError):
            found = None
        if name:
            values = VALUE.findall(self.source)
            return FunctionCall(name[1][:100], dict(values) if values or begins < 0 else found)
        if type(found) is not dict or type(found.get("name")) is not str:
            return None
        return FunctionCall(found["name"][:100], found.get("arguments", found.get("parameters", {})))
