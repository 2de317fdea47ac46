"""Forge 2 and its forks have this module."""
