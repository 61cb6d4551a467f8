"""What runs behind the endpoint: the DJL Serving handler and its packaging. Not built yet: see the README."""
