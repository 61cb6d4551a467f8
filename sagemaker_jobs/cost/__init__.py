"""Costs: plans, price lists, lifetimes and expected run times."""
