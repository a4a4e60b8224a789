"""From taste histories to taste vectors: linear factor views, the encoder, its training and its bundle."""
