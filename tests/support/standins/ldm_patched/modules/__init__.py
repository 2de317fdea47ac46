"""See `ops`."""
