"""The part of Forge and its forks that AUTOMATIC1111 lacks."""
