"""Loading and stepping an artifact. compile/ only produces them."""
