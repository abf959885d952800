"""By what a call is ours: its name for other workers and nodes, its lease, and what of it was committed."""
from hashlib import blake2b

import orjson

from .registry import Registry


class Tenure:
    """By what a call is ours."""

    __slots__ = ("registry", "key", "came", "owner", "epoch", "number", "written", "told", "anew", "asks", "lost",
                 "marked")

    def __init__(self, registry: Registry | None, key: str, came: int = 0):
        self.registry = registry            # None: there is no other node
        self.key = key
        self.came = came                    # ns: when its platform came here with it
        self.owner = registry.new_owner() if registry is not None else ""
        self.epoch = 0                      # of the lease; 0: the registry does not know of the call yet
        self.number = 0                     # entries that were committed
        self.written = 0                    # receipts in them
        self.told: tuple = ()               # what the last one is of
        self.anew = False                   # the stream holds another conversation
        self.asks = False                   # the lease is being taken
        self.lost = False                   # another has the call
        self.marked = False                 # as ours on the shelf

    @property
    def name(self) -> bytes:
        """The key as the shelf takes it."""
        return bytes.fromhex(self.key)

    def muted(self, line) -> bool:
        """True while another may speak on the call.  Where the registry cannot say, the one may whom its platform
        talks to."""
        registry = self.registry
        if self.lost or registry is None:
            return self.lost
        if self.epoch and registry.sure():
            return False
        return registry.stands or not line.there(registry.clock(), registry.patience_ns)

    @property
    def state(self) -> list:
        """For another worker, which goes on with the same connection."""
        return [self.key, self.owner, self.epoch, self.number, self.written, self.anew]


def key_of(dialect: str, agent: str, tenant: str, name: str) -> str:
    """Of a call; nobody can tell from it what the call is."""
    return blake2b(orjson.dumps([dialect, agent, tenant, name]), digest_size=16).hexdigest()
