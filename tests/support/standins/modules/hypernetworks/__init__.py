"""The hypernetworks that the stand-in host brings along."""
