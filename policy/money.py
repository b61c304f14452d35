"""Money: integers of nano-dollars, rounded once and up.

1 USD is 10**9 nano-dollars. Prices are integers of micro-dollars per million tokens, so one token
costs ``price / 1000`` nano-dollars.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

NANO_PER_USD = 1_000_000_000
TOKENS_MAX = 100_000_000
PRICE_MAX = 10**10
"""Largest price: ten thousand dollars per million tokens; products with tokens fit 64 bits."""
AMOUNT_MAX = 10**18
"""Largest amount in nano-dollars that a record may carry: one billion dollars."""
BILL_MAX = 2 * 10**15
"""Largest bill of one call, two million dollars: the most that reported usage can cost. Two
thousand of them in one budget's window are counted exactly."""
INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One version of an arm's price.

    Parameters
    ----------
    version : int
        Counts up with each change of the arm's price.
    input, output, cached : int
        Micro-dollars per million tokens; ``cached`` is the price of an input token read from the
        provider's cache and defaults to ``input``.

    Raises
    ------
    ValueError
        If a price is negative or larger than ``PRICE_MAX``, or if every price is zero: an arm
        that costs nothing is far more often a missing price than a gift.
    """

    version: int
    input: int
    output: int
    cached: int | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= PRICE_MAX:
                raise ValueError(f"price {name} must be in [0, {PRICE_MAX}], got {value}")
        if self.input == 0 and self.output == 0:
            raise ValueError(f"price version {self.version} is zero for input and output")


def call_cost_nanousd(
    price: Price, *, input_tokens: int, output_tokens: int, cached_tokens: int = 0
) -> int:
    """Return the cost of one call in nano-dollars, rounded up once.

    ``cached_tokens`` are those of the ``input_tokens`` that came from the provider's cache.

    Raises
    ------
    ValueError
        If a count is negative or there are more cached than input tokens.

    Examples
    --------
    >>> call_cost_nanousd(Price(version=1, input=150_000, output=600_000),
    ...                   input_tokens=100, output_tokens=10)
    21000
    >>> call_cost_nanousd(Price(version=1, input=1, output=1), input_tokens=1, output_tokens=0)
    1
    """
    if min(input_tokens, output_tokens, cached_tokens) < 0 or cached_tokens > input_tokens:
        raise ValueError(
            f"token counts out of range: input {input_tokens}, output {output_tokens}, "
            f"cached {cached_tokens}"
        )
    cached_price = price.input if price.cached is None else price.cached
    thousandths = (
        (input_tokens - cached_tokens) * price.input
        + cached_tokens * cached_price
        + output_tokens * price.output
    )
    return -(-thousandths // 1_000)


def bound_nanousd(price: Price, *, input_tokens: int, output_tokens: int) -> int:
    """Return the most that a call of this size can cost: no token is taken as cached for less.

    Examples
    --------
    >>> bound_nanousd(Price(version=1, input=1000, output=2000, cached=5000),
    ...               input_tokens=10, output_tokens=1)
    52
    """
    dearest = price.input if price.cached is None else max(price.input, price.cached)
    return -(-(input_tokens * dearest + output_tokens * price.output) // 1_000)


def parse_usd(text: str) -> int:
    """Return nano-dollars from a decimal number of dollars, rounded up.

    Raises
    ------
    ValueError
        If the text is no finite, non-negative decimal number.

    Examples
    --------
    >>> parse_usd("0.0003")
    300000
    """
    try:
        value = Decimal(text)
    except ArithmeticError:
        raise ValueError(f"not an amount of dollars: {text!r}") from None
    if not value.is_finite() or value < 0:
        raise ValueError(f"not an amount of dollars: {text!r}")
    return int((value * NANO_PER_USD).to_integral_value(rounding=ROUND_CEILING))


def format_usd(amount_nanousd: int) -> str:
    """Return dollars with the digits that an amount of this size needs.

    Examples
    --------
    >>> format_usd(1_234_567_890), format_usd(300_000), format_usd(-5)
    ('$1.2346', '$0.000300', '-$0.000000005')
    """
    sign, amount = ("-", -amount_nanousd) if amount_nanousd < 0 else ("", amount_nanousd)
    digits = 4 if amount >= 10**8 else 6 if amount >= 10**5 else 9
    return f"{sign}${Decimal(amount) / NANO_PER_USD:.{digits}f}"
