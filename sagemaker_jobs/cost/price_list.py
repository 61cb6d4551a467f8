"""SageMaker's prices from AWS's own Price List, else the dated table; which of the two is always said."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import REGION, Price, find_price
from sagemaker_jobs.aws.account import Account

SERVICE = "AmazonSageMaker"
TRAINING, HOSTING, TRANSFORM = "Training", "Hosting", "Batch Transform"
"""Components: the list has a product for each thing that an instance can do, and their prices may differ."""


def price_of(instance: str, component: str, account: Account | None, region: str = REGION) -> Price:
    """What an instance costs: live where AWS answers, else from the table.

    Args:
        instance: As SageMaker calls it.
        component: TRAINING, HOSTING or TRANSFORM.
        account: None: do not ask.
        region: Where, without an account.

    Raises:
        AwsError: If AWS answers with anything but one price.
        PlatformError: If AWS does not answer, and the table has no such instance.
    """
    if account is None:
        return find_price(instance, region)
    try:
        products = list(_products(instance, account))
    except AwsError as error:
        table = find_price(instance, account.region)
        return replace(table, instance=instance, source=f"{table.source} (no live price: {error.message:.120})")
    found = {price for product in products for price in _prices(product, component)}
    instead = ""
    if not found and component == TRANSFORM:  # some instances have no product of that name
        found = {price for product in products for price in _prices(product, HOSTING)}
        instead = f", {HOSTING}'s, for it has none for {TRANSFORM}"
    if len(found) != 1:
        listing = ", ".join(f"{price:g}" for price in sorted(found)) or "none"
        raise AwsError(
            f"AWS's Price List has {len(found)} prices of {instance} for {component} in {account.region}: {listing}",
            "another --instance or --region; --offline takes the shipped table instead",
        )
    read = datetime.now(timezone.utc).date().isoformat()
    return Price(instance, found.pop(), f"AWS Price List, {account.region}, {read}{instead}")


def _products(instance: str, account: Account) -> Iterator[dict[str, Any]]:
    """The service filters by region and instance; the component's attribute it does not take as a filter."""
    filters = {"regionCode": account.region, "instanceName": instance}
    listing = account.pages(
        "pricing",
        "get_products",
        "PriceList",
        ServiceCode=SERVICE,
        Filters=[{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in filters.items()],
    )
    for product in listing:
        yield dict(json.loads(product)) if isinstance(product, str) else product


def _prices(product: dict[str, Any], component: str) -> Iterator[float]:
    """USD an hour on demand, of a product that is of the component."""
    attributes = product.get("product", {}).get("attributes", {})
    if _plain(str(attributes.get("component", ""))) != _plain(component):
        return
    for offer in product.get("terms", {}).get("OnDemand", {}).values():
        for dimension in offer["priceDimensions"].values():
            if dimension.get("unit", "").lower() in ("hrs", "hours", "hour"):
                yield float(dimension["pricePerUnit"]["USD"])


def _plain(component: str) -> str:
    """Spelled with and without a space."""
    return component.lower().replace(" ", "")
