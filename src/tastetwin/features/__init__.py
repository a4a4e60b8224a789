"""features: ``user_favor``, ``place``, the vocabulary of places and the taste histories."""
