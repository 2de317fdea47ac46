"""The model code of the stand-ins for Forge 1 and its forks."""
