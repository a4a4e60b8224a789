"""Attacks on what clients get, see ``benchmarks/attack.py``."""
