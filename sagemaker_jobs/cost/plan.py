"""Maximum cost of a run before it starts: every resource with its price and its maximum hours.

The maximum is computed from the requests that will be sent, so that the limits in them apply in AWS.
"""

import math
from dataclasses import dataclass
from typing import Any

from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import Price

NOT_COUNTED = "S3 storage, disks and logs, which cost a few cents for a typical run"


@dataclass(frozen=True)
class Item:
    """Resource that a run creates.

    Attributes:
        kind: The kind, such as training-job.
        name: The resource's name in AWS.
        price: The price; None for free resources.
        instances: The number of billed instances.
        worst_hours: The maximum billed hours.
        expected_hours: The expected hours; None if unknown.
        bounded_by: The limit that ends it.
        unbounded: Whether only the user ends it.
    """

    kind: str
    name: str
    price: Price | None = None
    instances: int = 1
    worst_hours: float = 0.0
    expected_hours: float | None = None
    bounded_by: str = ""
    unbounded: bool = False

    @property
    def usd_per_hour(self) -> float:
        """The cost in USD per hour of all instances."""
        return self.price.cost(1, self.instances) if self.price else 0.0

    @property
    def worst_usd(self) -> float:
        """The maximum cost in USD: price × instances × maximum hours."""
        if self.unbounded:
            return math.inf
        return self.price.cost(self.worst_hours, self.instances) if self.price else 0.0

    @property
    def expected_usd(self) -> float | None:
        """The expected cost in USD; None if the expected hours are unknown."""
        if self.price is None:
            return 0.0
        return None if self.expected_hours is None else self.price.cost(self.expected_hours, self.instances)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for --json."""
        priced = self.price is not None
        return {
            "kind": self.kind,
            "name": self.name,
            "instance": self.price.instance if self.price else None,
            "instances": self.instances if priced else None,
            "usd_per_hour": self.price.usd_per_hour if self.price else None,
            "price_source": self.price.source if self.price else None,
            "worst_hours": self.worst_hours if priced and not self.unbounded else None,
            "bounded_by": self.bounded_by or None,
            "worst_usd": _json_usd(self.worst_usd),
            "expected_usd": None if self.expected_usd is None else round(self.expected_usd, 2),
        }


@dataclass(frozen=True)
class Plan:
    """Resources of a run and their cost.

    Attributes:
        items: The resources in the order of creation.
    """

    items: tuple[Item, ...]

    @property
    def worst_usd(self) -> float:
        """The total maximum cost in USD."""
        return sum(item.worst_usd for item in self.items)

    @property
    def expected_usd(self) -> float | None:
        """The total expected cost in USD; None if any item has no estimate."""
        expected = [item.expected_usd for item in self.items]
        return None if None in expected else sum(usd for usd in expected if usd is not None)

    def __getitem__(self, kind: str) -> Item:
        """The item of a kind of resource."""
        return next(item for item in self.items if item.kind == kind)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for --json."""
        expected = self.expected_usd
        return {
            "items": [item.as_dict() for item in self.items],
            "worst_usd": _json_usd(self.worst_usd),
            "expected_usd": None if expected is None else round(expected, 2),
            "not_counted": NOT_COUNTED,
        }

    def check(self, max_usd: float | None) -> None:
        """Reject a plan that may cost more than the limit.

        Args:
            max_usd: The limit in USD; None for no limit.

        Raises:
            AwsError: If the maximum cost exceeds the limit, or is unknown; the hint names what to lower.
        """
        if max_usd is None:
            return
        if foreign := [item.price for item in self.items if item.price is not None and item.price.of_another_region]:
            raise AwsError(
                f"--max-usd {max_usd:g} cannot be enforced: no price for this region is known, only {foreign[0]}",
                "use credentials with pricing:GetProducts to read the price from AWS, or omit --max-usd",
            )
        if self.worst_usd <= max_usd:
            return
        dearest = max(self.items, key=lambda item: item.worst_usd)
        if dearest.unbounded:
            raise AwsError(
                f"the cost of {dearest.kind} {dearest.name} has no limit, but --max-usd allows ${max_usd:.2f}",
                "use --hours instead of --keep, or omit --max-usd",
            )
        raise AwsError(
            f"the maximum cost is ${self.worst_usd:.2f}, but --max-usd allows ${max_usd:.2f}; the largest item is "
            f"{dearest.kind} {dearest.name} (${dearest.worst_usd:.2f})",
            "lower the hours or the instances, use another instance, or raise --max-usd",
        )


def _json_usd(usd: float) -> float | None:
    """Return None for infinity, which JSON does not support."""
    return None if math.isinf(usd) else round(usd, 2)
