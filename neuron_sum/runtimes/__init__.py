"""Load compiled artifacts and generate with them; compile/ only produces them."""
