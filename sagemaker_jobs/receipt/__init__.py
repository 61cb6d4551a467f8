"""A receipt of an AWS account: the cheapest life cycle that shows what only AWS can show."""
