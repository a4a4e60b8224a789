"""deploy: a run beside the one that is served, then in its place; by itself back where something is wrong."""
