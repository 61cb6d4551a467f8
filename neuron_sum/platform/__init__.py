"""Tables of platforms, support and prices, and the description of this machine."""
