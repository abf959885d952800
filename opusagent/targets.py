"""Whom may be called: numbers and SIP addresses in one spelling, and the list of those that are allowed.

The rule: an empty list allows nobody, and what cannot be read as a target is none.
"""
import re

NUMBER = re.compile(r"\+[1-9]\d{6,14}")                             # E.164
SIP = re.compile(r"sips?:[A-Za-z0-9._~!$&'()*+;=%-]{1,64}@[A-Za-z0-9.-]{1,253}(:\d{1,5})?")
PATTERN = re.compile(r"\+\d{0,15}\*?|sips?:[^\s@]{1,64}@[A-Za-z0-9.*-]{1,253}(:\d{1,5})?")


def spelled(target: str) -> str:
    """A number as +4930123456, a SIP address as sip:NAME@HOST; "" for what is neither."""
    text = target.strip()
    if text[:4].lower() in ("sip:", "sips"):
        scheme, _, rest = text.partition(":")
        name, _, host = rest.partition("@")
        text = f"{scheme.lower()}:{name}@{host.lower()}"
        return text if SIP.fullmatch(text) else ""
    number = re.sub(r"[\s()./-]", "", text.removeprefix("tel:"))
    number = "+" + number[2:] if number.startswith("00") else number
    return number if NUMBER.fullmatch(number) else ""


def is_pattern(text: str) -> bool:
    """True for +4930123456, +4930*, sip:reception@pbx.example and sip:*@pbx.example."""
    return PATTERN.fullmatch(text) is not None


def allowed(target: str, patterns: tuple[str, ...]) -> bool:
    """Whether a target, as spelled() writes it, is on the list."""
    return bool(target) and any(fits(target, pattern) for pattern in patterns)


def fits(target: str, pattern: str) -> bool:
    if pattern.startswith("+"):
        return target.startswith(pattern[:-1]) if pattern.endswith("*") else target == pattern
    name, _, host = pattern.partition("@")
    its_name, _, its_host = target.partition("@")
    any_name = name.endswith(":*")
    return host.lower() == its_host and (its_name == name or any_name and its_name.startswith(name[:-1]))
