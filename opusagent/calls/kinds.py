"""What a call in a dialect is."""
from ..dialects import OpenAIRealtime, TwilioRelay
from .call import Call
from .realtime.call import RealtimeCall
from .relay import RelayCall

KINDS = {TwilioRelay.name: RelayCall, OpenAIRealtime.name: RealtimeCall}


def call_of(dialect: str) -> type[Call] | type[RelayCall]:
    return KINDS.get(dialect, Call)
