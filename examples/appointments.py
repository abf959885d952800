"""The tools of appointments.toml.  A real one would ask the shop's calendar; this one keeps it in memory."""

from datetime import date, time

BOOKED: dict[tuple[date, time], str] = {}
HOURS = [time(hour, minute) for hour in range(9, 18) for minute in (0, 30)]
MONDAY, SUNDAY = 0, 6


async def slots(day: date) -> dict:
    """The first and the last free time of a day."""
    free = [at for at in HOURS if (day, at) not in BOOKED]
    if day.weekday() in (MONDAY, SUNDAY) or not free:
        return {"result": "closed"}
    return {"result": "open", "first": f"{free[0]:%H:%M}", "last": f"{free[-1]:%H:%M}"}


async def book(day: date, at: time) -> dict:
    """Takes a time, unless it is taken."""
    if (day, at) in BOOKED:
        return {"result": "taken"}
    BOOKED[day, at] = reference = f"{4700 + len(BOOKED)}"
    return {"result": "booked", "reference": reference}
