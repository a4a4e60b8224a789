"""mart: raw lines become typed, cleansed tables, one stated grain each, plus the quarantine of refused lines."""
