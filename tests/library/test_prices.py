"""The price table: dated, for one region, and never with EC2's prices."""

import re

import pytest

from neuron_sum.errors import PlatformError
from neuron_sum.platform import prices
from neuron_sum.platform.matrix import INSTANCES


def test_the_price_table_has_every_neuron_instance_a_date_and_a_region() -> None:
    assert set(INSTANCES) <= set(prices.USD_PER_HOUR)
    price = prices.find_price("trn1.2xlarge")
    assert (price.instance, price.usd_per_hour) == ("ml.trn1.2xlarge", 1.54)
    assert price.cost(2, instances=3) == pytest.approx(9.24)
    assert re.search(r"us-east-1 .* \d{4}-\d\d-\d\d", price.source)
    assert "eu-west-1 may cost more" in prices.find_price("ml.trn1.2xlarge", "eu-west-1").source
    with pytest.raises(PlatformError, match=r"no price of ml\.p4d\.24xlarge in the table of 2026"):
        prices.find_price("ml.p4d.24xlarge")
