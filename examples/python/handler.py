"""The function: what a shop wants to know about a day's orders.

`handle` takes an event (`{"currency": "EUR", "orders": [...]}`) and returns its answer; both are plain JSON values.
An order is `{"id", "customer", "country", "items": [{"sku", "quantity", "unit_price"}]}`, prices in cents.
"""

from collections import Counter, defaultdict


def handle(event):
    orders = event.get("orders")
    if not isinstance(orders, list):
        raise ValueError("the event has no list 'orders'")
    accepted, rejected = [], []
    for order in orders:
        try:
            accepted.append((order, value_of(order)))
        except (KeyError, TypeError, ValueError) as error:
            rejected.append({"id": identifier(order), "reason": describe(error)})
    values = sorted(value for _, value in accepted)
    return {
        "currency": event.get("currency", "EUR"),
        "orders": len(accepted),
        "rejected": rejected,
        "revenue": sum(values),
        "order_value": {name: percentile(values, share) for name, share in PERCENTILES},
        "by_country": by_country(accepted),
        "best_customers": best_customers(accepted, 3),
        "best_sellers": best_sellers(accepted, 3),
    }


PERCENTILES = (("p50", 50), ("p90", 90), ("p99", 99))


def value_of(order):
    items = order["items"]
    if not items:
        raise ValueError("no items")
    for item in items:
        quantity, price = item["quantity"], item["unit_price"]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in (quantity, price)):
            raise TypeError("quantity and unit_price are whole numbers")
        if quantity < 1 or price < 0:
            raise ValueError(f"{item['sku']}: quantity {quantity} at {price}")
    return sum(item["quantity"] * item["unit_price"] for item in items)


def percentile(values, share):
    """Nearest rank: the smallest value that at least `share` percent of all do not exceed."""
    if not values:
        return None
    rank = -(-share * len(values) // 100)
    return values[max(rank, 1) - 1]


def by_country(accepted):
    groups = defaultdict(list)
    for order, value in accepted:
        groups[order.get("country", "unknown")].append(value)
    return {
        country: {"orders": len(values), "revenue": sum(values), "largest": max(values)}
        for country, values in sorted(groups.items())
    }


def best_customers(accepted, count):
    spent = Counter()
    for order, value in accepted:
        spent[order.get("customer", "unknown")] += value
    return [{"customer": name, "spent": value} for name, value in ranked(spent, count)]


def best_sellers(accepted, count):
    sold = Counter()
    for order, _ in accepted:
        for item in order["items"]:
            sold[item["sku"]] += item["quantity"]
    return [{"sku": sku, "sold": quantity} for sku, quantity in ranked(sold, count)]


def ranked(counter, count):
    """Largest first, ties by name: the answer does not depend on the order of the records."""
    return sorted(counter.items(), key=lambda entry: (-entry[1], entry[0]))[:count]


def identifier(order):
    return order.get("id") if isinstance(order, dict) else None


def describe(error):
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
