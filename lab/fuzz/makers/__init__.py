"""Makers turn `Choices` into files and texts of the right structure, most of them with some fault."""
