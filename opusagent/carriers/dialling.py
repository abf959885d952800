"""`opusagent dial`: places a call by a carrier, and says its id.  The call is held by the server at `public_url`.

The rule: nobody is dialled whom the list `targets` does not allow, and nothing is sent that cannot be answered.
"""
import asyncio

from .. import ConfigError, EngineError, targets
from ..config import Config
from . import TABLE, Errand


def errand(config: Config, number: str, via: str, agent: str, detect: bool):
    """(the account, what it is asked) of a call to `number`.  ConfigError where it may not or cannot be placed."""
    account = config.accounts.get(via)
    if account is None:
        raise ConfigError(f"There is no carrier {via!r}: give its account under [carriers.{via}]"
                          + (f"; there are {', '.join(config.accounts)}." if config.accounts else "."))
    target = targets.spelled(number)
    if not target:
        raise ConfigError(f"{number[:60]!r} is no number such as +4930123456, and no SIP address.")
    if not targets.allowed(target, config.targets):
        raise ConfigError("The list `targets` does not allow this number: it names who may be called, as in "
                          'targets = ["+4930*"].')
    if not config.public_url.startswith("https://"):
        raise ConfigError("A carrier needs to know where the server is: set public_url, as https://HOST.")
    if not account.sender:
        raise ConfigError(f"carriers.{via} needs sender, the number that is called from.")
    keys = [key for key in config.keys if key.platform == account.platform and key.agent in ("", agent)]
    token = next((secret for key in keys for secret in key.secrets), "") if account.platform == "telnyx" else ""
    return account, Errand(target, config.public_url.rstrip("/"), agent, detect, token)


async def dial(config: Config, number: str, via: str, agent: str = "", detect: bool = True) -> str:
    """The id of the call that was placed.  ConfigError, or EngineError where the carrier refused it."""
    from .rest import Rest
    account, call = errand(config, number, via, agent, detect)
    platform, rest = TABLE[account.platform], Rest()
    try:
        answer = await rest.send(account, platform.dial(account, call))
    finally:
        await rest.close()
    if not (name := platform.placed(answer)):
        raise EngineError(f"The carrier {account.name} named no call in its answer: is its api the right address?")
    return name


def dial_command(config: Config, number: str, via: str, agent: str, detect: bool) -> int:
    print(f"call {asyncio.run(dial(config, number, via, agent, detect))}")
    return 0
