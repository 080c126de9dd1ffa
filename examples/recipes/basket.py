"""What somebody is about to buy."""


def total(prices: dict[str, int], basket: list[tuple[str, int]]) -> int:
    """In cents; `basket`: articles, and how many of each."""
    return sum(prices[article] for article, count in basket)
