"""App: what a product does with twins; it knows the gateway by its API only."""
