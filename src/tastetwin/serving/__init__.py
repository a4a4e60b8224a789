"""The model online, in three tiers: model backend, model gateway, app; each a process of its own."""
