"""Prices of each model's tokens now, for the estimate below an answer."""

from collections.abc import Iterable

from serving.fleet.models import ModelStatus
from serving.ledger.tariff import Tariff, Tokens

_MILLION = 10**6
_QUARTER = 15 * 60
_DAY = 24 * 3600


def price_lists(
    tariff: Tariff, models: Iterable[ModelStatus], now: float
) -> dict[str, dict[str, float | str]]:
    """Return the ``price_list`` of each model that has one, by its name and each of its aliases."""
    found = {}
    for model in models:
        prices = price_list(tariff, model.name, now)
        if prices is not None:
            found.update(dict.fromkeys((model.name, *model.aliases), prices))
    return found


def price_list(tariff: Tariff, model: str, now: float) -> dict[str, float | str] | None:
    """Return the currency and the prices of a million tokens of each kind.

    Args:
        tariff: Prices of all models.
        model: Name of a served model.
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
