"""A page for planners: users, twins, pairs, the taste map, health, and what the next run would change."""
