"""Prices of a model's tokens now, for the estimate below an answer."""

from serving.ledger.tariff import Tariff, Tokens

_MILLION = 10**6
_QUARTER = 15 * 60
_DAY = 24 * 3600


def price_list(tariff: Tariff, model: str, now: float) -> dict[str, float | str] | None:
    """Return the currency and the prices of a million tokens of each kind.

    Args:
        tariff: Prices of all models.
        model: Name of the served model.
        now: Seconds since the Unix epoch; selects the tariff's window.

    Returns:
        The currency, and prices as floats, since they are only estimates here. None: the tariff has
        no prices of the model.
    """
    prices = tariff.prices(model, now)
    if prices is None:
        return None
    quarter = int(now % _DAY) // _QUARTER
    whole = prices.at(
        quarter,
        Tokens(requests=1, prompt=2 * _MILLION, cached=_MILLION, output=_MILLION, reasoning=0),
    )
    return {
        "currency": tariff.currency,
        "cached": float(whole.cached),
        "uncached": float(whole.uncached),
        "output": float(whole.output),
    }
