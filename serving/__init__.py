"""What runs behind an endpoint: the DJL Serving handler, its server and image, packaging, the client."""
