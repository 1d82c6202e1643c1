"""Tariffs: what the tokens of a model cost, by kind and time of day.

A tariff is a YAML file (deploy/docs/usage.md). All amounts are decimals: scalars are read as text
and never become floats. The price of a period is the sum of tokens times prices, without
intermediate rounding, so that a bill equals the sum over its requests.
"""

import datetime as dt
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from serving.credentials.watched import read_text
from serving.errors import SettingsError
from serving.yaml_text import NotYaml, read_yaml

BUNDLED = Path(__file__).parent / "tariffs" / "deepseek-2025-02.yaml"
QUARTERS = 96
"""Number of quarter hours per day: the resolution of a tariff's times."""
ANY_MODEL = "*"
"""Key for the prices of all models that the tariff does not name."""

_MILLION = Decimal(1_000_000)
_TIME = re.compile(r"^([01][0-9]|2[0-3]):(00|15|30|45)$")

_DAY = re.compile(r"^\d{4}-\d{2}-\d{2}$", re.ASCII)
_DIGITS = 10
"""Maximum number of digits of a price: its product with up to 10**13 tokens and a discount then has
at most 28 digits, the precision of decimals."""

Price = Annotated[Decimal, Field(ge=0, allow_inf_nan=False, max_digits=_DIGITS)]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one or more requests of a model."""

    requests: int = 0
    prompt: int = 0
    """Number of prompt tokens, including cached ones."""
    cached: int = 0
    output: int = 0
    """Number of generated tokens, including reasoning."""
    reasoning: int = 0
    """Number of output tokens that are known to be reasoning."""

    def __add__(self, other: "Tokens") -> "Tokens":
        """Return the sums."""
        return Tokens(
            self.requests + other.requests,
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.output + other.output,
            self.reasoning + other.reasoning,
        )


@dataclass(frozen=True, slots=True)
class Amounts:
    """A price by kind of token, in the tariff's currency."""

    cached: Decimal
    uncached: Decimal
    output: Decimal
    reasoning: Decimal

    @property
    def total(self) -> Decimal:
        """Sum over all kinds of tokens."""
        return self.cached + self.uncached + self.output + self.reasoning

    def __add__(self, other: "Amounts") -> "Amounts":
        """Return the sums."""
        return Amounts(
            self.cached + other.cached,
            self.uncached + other.uncached,
            self.output + other.output,
            self.reasoning + other.reasoning,
        )

    def discounted(self, percent: Decimal) -> "Amounts":
        """Return the amounts less a discount in percent."""
        rate = (100 - percent) / Decimal(100)
        return Amounts(
            self.cached * rate, self.uncached * rate, self.output * rate, self.reasoning * rate
        )

    def lower(self, other: "Amounts") -> "Amounts":
        """Return the lower amount of each kind."""
        return Amounts(
            min(self.cached, other.cached),
            min(self.uncached, other.uncached),
            min(self.output, other.output),
            min(self.reasoning, other.reasoning),
        )


ZERO = Amounts(Decimal(0), Decimal(0), Decimal(0), Decimal(0))


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Prices(_Part):
    """Prices per million tokens."""

    cached: Price
    """Prompt tokens that came from a KV cache."""
    uncached: Price
    """Other prompt tokens."""
    output: Price
    """Generated tokens."""
    reasoning: Price | None = None
    """Reasoning tokens. None means the same as output."""

    def of(self, tokens: Tokens) -> Amounts:
        """Return the exact price of tokens."""
        reasoning = self.output if self.reasoning is None else self.reasoning
        return Amounts(
            self.cached * tokens.cached / _MILLION,
            self.uncached * (tokens.prompt - tokens.cached) / _MILLION,
            self.output * (tokens.output - tokens.reasoning) / _MILLION,
            reasoning * tokens.reasoning / _MILLION,
        )

    def without_cache(self, prompt: int, output: int) -> Decimal:
        """Return the maximum price, for any share of cached and reasoning tokens."""
        input_price = max(self.cached, self.uncached)
        output_price = max(self.output, self.reasoning or Decimal(0))
        return (input_price * prompt + output_price * output) / _MILLION


class BatchPrices(_Part):
    """Prices of the lines of batches: a discount in percent, or prices."""

    discount_percent: Annotated[Decimal, Field(ge=0, le=100, decimal_places=2)] | None = None
    prices: Prices | None = None

    @model_validator(mode="after")
    def _check(self) -> "BatchPrices":
        _check_one_price(self.discount_percent, self.prices)
        return self

    def of(self, full: Amounts, tokens: Tokens) -> Amounts:
        """Return the price of tokens with the list price ``full``."""
        if self.prices is not None:
            return self.prices.of(tokens)
        assert self.discount_percent is not None
        return full.discounted(self.discount_percent)


def _check_one_price(discount: Decimal | None, prices: Prices | None) -> None:
    if (discount is None) == (prices is None):
        raise ValueError("must have either discount_percent or prices")


class Window(_Part):
    """A time of day with different prices: a discount in percent, or prices."""

    from_quarter: int = Field(alias="from")
    """Start, in quarter hours after 0:00 UTC."""
    until_quarter: int = Field(alias="until")
    """End (exclusive); if before the start, on the next day."""
    discount_percent: Annotated[Decimal, Field(ge=0, le=100, decimal_places=2)] | None = None
    prices: Prices | None = None

    @field_validator("from_quarter", "until_quarter", mode="before")
    @classmethod
    def _quarter(cls, value: Any) -> int:
        found = _TIME.fullmatch(str(value))
        if found is None:
            raise ValueError("must be a time in UTC at a quarter of an hour, e.g. 16:30")
        return int(found[1]) * 4 + int(found[2]) // 15

    @model_validator(mode="after")
    def _check(self) -> "Window":
        _check_one_price(self.discount_percent, self.prices)
        if self.from_quarter == self.until_quarter:
            raise ValueError("from and until must differ")
        return self

    def quarters(self) -> frozenset[int]:
        """Return the quarter hours of the day that are in the window."""
        length = (self.until_quarter - self.from_quarter) % QUARTERS
        return frozenset((self.from_quarter + each) % QUARTERS for each in range(length))


class ModelPrices(Prices):
    """Prices of one model."""

    windows: tuple[Window, ...] = ()
    batch: BatchPrices | None = None
    """Prices of lines of batches. None means the same as for other requests."""

    @model_validator(mode="after")
    def _check(self) -> "ModelPrices":
        taken: set[int] = set()
        for window in self.windows:
            if taken & window.quarters():
                raise ValueError("windows overlap")
            taken |= window.quarters()
        return self

    def at(self, quarter: int, tokens: Tokens, *, batch: bool = False) -> Amounts:
        """Return the price of tokens of requests that ended in a quarter hour of the day.

        Args:
            quarter: The quarter, 0 to 95.
            tokens: The requests' tokens.
            batch: Whether they are lines of batches, which pay for every kind of token the lower
                of the batch price and the price at that time.
        """
        found = self._at(quarter, tokens)
        if not batch or self.batch is None:
            return found
        return found.lower(self.batch.of(self.of(tokens), tokens))

    def _at(self, quarter: int, tokens: Tokens) -> Amounts:
        for window in self.windows:
            if quarter not in window.quarters():
                continue
            if window.prices is not None:
                return window.prices.of(tokens)
            assert window.discount_percent is not None
            return self.of(tokens).discounted(window.discount_percent)
        return self.of(tokens)

    def highest(self, prompt: int, output: int) -> Decimal:
        """Return the maximum price of a prompt and its output, at any time of day.

        Discounts and batch prices can be ignored, because they only lower it.
        """
        kinds = (self, *(each.prices for each in self.windows if each.prices is not None))
        return max(each.without_cache(prompt, output) for each in kinds)


Models = Annotated[Mapping[str, ModelPrices], Field(min_length=1)]


def _date(value: Any) -> Any:
    # Numbers are rejected, because pydantic would read them as seconds since 1970.
    if _DAY.fullmatch(str(value)) is None:
        raise ValueError("must be a date, e.g. 2027-01-01")
    return value


class Change(_Part):
    """New prices for some models; other prices stay the same."""

    start: Annotated[dt.date, BeforeValidator(_date)] = Field(alias="from")
    """First day of the prices, starting at 0:00 UTC."""
    models: Models


class Tariff(_Part):
    """Prices of all models."""

    currency: str = Field(pattern=r"^[A-Z]{3}$")
    """ISO 4217 code."""
    models: Models
    """Prices by served model name; ``ANY_MODEL`` is for all others."""
    changes: tuple[Change, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Tariff":
        days = [each.start for each in self.changes]
        if days != sorted(set(days)):
            raise ValueError("changes must have increasing dates")
        return self

    def prices(self, model: str, at: float) -> ModelPrices | None:
        """Return a model's prices at a Unix time, or None if the tariff has none."""
        starts, versions = self._versions
        models = versions[bisect_right(starts, at)]
        return models.get(model) or models.get(ANY_MODEL)

    @cached_property
    def _versions(self) -> tuple[Sequence[float], Sequence[Mapping[str, ModelPrices]]]:
        """The start of each change, Unix seconds, and all prices before and after each."""
        starts, versions = [], [self.models]
        for each in self.changes:
            midnight = dt.datetime.combine(each.start, dt.time(), dt.UTC)
            starts.append(midnight.timestamp())
            versions.append({**versions[-1], **each.models})
        return starts, versions


def load_tariff(file: str | None) -> Tariff:
    """Read a tariff file. None means the bundled tariff.

    Raises:
        SettingsError: The file cannot be read, or is invalid; the message names each problem.
    """
    path = str(BUNDLED) if file is None else file
    return parse_tariff(read_text(path, "tariff"), path)


def parse_tariff(text: str, where: str) -> Tariff:
    """Parse the text of a tariff file.

    Args:
        text: Content of the file.
        where: Name of the file, for messages.

    Raises:
        SettingsError: The text is invalid.
    """
    try:
        return Tariff.model_validate(read_yaml(text, scalars_as_text=True))
    except NotYaml as error:
        raise SettingsError(f"tariff {where}: {error}") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()
        ]
        raise SettingsError(f"tariff {where}: {'; '.join(problems)}") from error
