"""The package `modules` of the stand-in host; see `standins`."""
