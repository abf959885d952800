"""What a reasoning model thinks before it answers, where its server sends that as text: <think> ... </think>.

It knows text only.  The rule: thoughts are nobody's to hear, and a model that thinks has not begun to answer; they
stand at the head of a text, and what stands anywhere else is the answer, whatever it looks like.
"""
BEGINS, ENDS = "<think>", "</think>"


class Thinking:
    """One answer's.  feed() what comes; what is returned is the answer."""

    __slots__ = ("_held", "_ends")

    def __init__(self):
        self._held = ""             # what has come of a mark, or before it is known whether there is one
        self._ends = BEGINS         # the mark that is waited for; "" once the answer has begun

    def feed(self, piece: str) -> str:
        """The answer in the next piece of the text."""
        if not self._ends:
            return piece
        self._held += piece
        if self._ends is BEGINS:
            head = self._held.lstrip()
            if BEGINS.startswith(head):
                if head != BEGINS:
                    return ""
            elif not head.startswith(BEGINS):
                self._ends = ""
                return self._held
            self._held, self._ends = head.removeprefix(BEGINS), ENDS
        thought, mark, rest = self._held.partition(ENDS)
        answer = rest.lstrip()
        if answer:
            self._ends = ""
        else:
            self._held = mark or thought[1 - len(ENDS):]
        return answer
