"""The part of Forge beside `modules`."""
