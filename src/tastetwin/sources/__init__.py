"""Where raw events come from: files, MongoDB, and a synthetic town whose true tastes are known."""
