"""Three small stand-ins for other designs, and the judge of all of them."""
