"""Databases that the published lists are loaded into."""
