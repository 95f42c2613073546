"""Arguments of OpenMM-facing classes: converted and checked once, at entry."""

import math

from openmm import unit

from openmm_starmd.errors import require


def valueIn(value, target: unit.Unit) -> float:
    """A Quantity, or a bare number that is taken to be in ``target``, as a number in that unit.

    A ValueError refuses what is neither, a TypeError a Quantity of another kind.
    """
    if unit.is_quantity(value):
        try:
            return float(value.value_in_unit(target))
        except TypeError:
            raise TypeError(f"expected a Quantity in {target.get_name()} or the like; got {value}") from None
    try:
        return float(value + 0)  # a text is no number, even "100"
    except (TypeError, ValueError):
        raise ValueError(f"expected a number in {target.get_name()}, or a Quantity; got {value!r}") from None


def positiveIn(name: str, value, target: unit.Unit) -> float:
    """`valueIn` of what must be above 0 and finite; a ValueError refuses anything else by its ``name``."""
    number, symbol = valueIn(value, target), target.get_symbol()
    require(0 < number < math.inf, f"{name} must be above 0 {symbol} and finite; got {number:g} {symbol}")
    return number


def wholeNumber(name: str, value, smallest: int = 0) -> int:
    """``value`` as an int; a ValueError refuses what is no whole number, or less than ``smallest``."""
    try:
        whole = not isinstance(value, bool) and int(value) == value and value >= smallest
    except (TypeError, ValueError, OverflowError):
        whole = False
    require(whole, f"{name} must be an integer of at least {smallest}, not {value!r}")
    return int(value)
