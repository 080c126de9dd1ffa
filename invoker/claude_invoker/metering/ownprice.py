"""The operator's own prices, as settings have them."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field

LARGEST_CONTEXT = 1_000_000


class OwnPrice(BaseModel):
    """The operator's price of a model: US dollars for a million tokens (`web_search`: for a thousand searches).

    What is left out is as the API's list prices have it in relation to `input`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)
    cache_read: Decimal | None = Field(default=None, ge=0)
    cache_write_5m: Decimal | None = Field(default=None, ge=0)
    cache_write_1h: Decimal | None = Field(default=None, ge=0)
    web_search: Decimal | None = Field(default=None, ge=0)
    context_window: int = Field(default=LARGEST_CONTEXT, ge=1)
    """Tokens that a request can have at most, whatever its size."""
