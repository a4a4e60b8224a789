"""Experiment tracking: what a run learnt and how it was judged, told to TensorBoard and MLflow where they are named.

Figures, settings and hashes only: no user id and no place id goes there. Trackers hear; nothing is asked of them that a
run needs, so a run comes out the same with them, without them, and while they are down.
"""
