"""What people may ask of us: to be shown to nobody."""
