"""The model gateway from the outside: its questions and answers as models, and a client that asks them."""
