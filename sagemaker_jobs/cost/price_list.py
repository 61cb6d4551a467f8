"""SageMaker prices from the AWS Price List, else from the dated table; every price names its source."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import REGION, Price, find_price
from sagemaker_jobs.aws.account import Account

SERVICE = "AmazonSageMaker"
HOSTING, TRANSFORM = "Hosting", "Batch Transform"


def price_of(instance: str, component: str, account: Account | None, region: str = REGION) -> Price:
    """Return the price of an instance from AWS, or from the table if AWS does not answer.

    Args:
        instance: The SageMaker instance type.
        component: The use of the instance: Training, Hosting or Batch Transform. The list has a product for each.
        account: The account to request the price with; None for the table.
        region: The region if there is no account.

    Raises:
        AwsError: If AWS has no price or several prices.
        PlatformError: If AWS does not answer, and the table does not contain the instance.
    """
    if account is None:
        return find_price(instance, region)
    try:
        products = list(_products(instance, account))
    except AwsError as error:
        table = find_price(instance, account.region)
        return replace(table, instance=instance, source=f"{table.source} (no live price: {error.message:.120})")
    found = {price for product in products for price in _prices(product, component)}
    note = ""
    if not found and component == TRANSFORM:  # some instances have no product for this component
        found = {price for product in products for price in _prices(product, HOSTING)}
        note = f", {HOSTING} price, because there is none for {TRANSFORM}"
    if len(found) != 1:
        listing = ", ".join(f"{price:g}" for price in sorted(found)) or "none"
        raise AwsError(
            f"the AWS Price List has {len(found)} prices of {instance} for {component} in {account.region}: {listing}",
            "use another --instance or --region, or --offline for the bundled price table",
        )
    today = datetime.now(timezone.utc).date().isoformat()
    return Price(instance, found.pop(), f"AWS Price List, {account.region}, {today}{note}")


def _products(instance: str, account: Account) -> Iterator[dict[str, Any]]:
    """Yield the products of an instance in the region; the service cannot filter by component."""
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
    """Yield the on-demand prices in USD per hour of a product if it is for the component."""
    attributes = product.get("product", {}).get("attributes", {})
    # AWS spells components in several ways.
    if str(attributes.get("component", "")).lower().replace(" ", "") != component.lower().replace(" ", ""):
        return
    for offer in product.get("terms", {}).get("OnDemand", {}).values():
        for dimension in offer["priceDimensions"].values():
            if dimension.get("unit", "").lower() in ("hrs", "hours", "hour"):
                yield float(dimension["pricePerUnit"]["USD"])
