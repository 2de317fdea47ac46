"""What every speed claim of the documentation comes from: `make bench`."""
