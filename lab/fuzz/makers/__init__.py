"""Makers of files: each turns `Choices` into bytes or text of the right structure, mostly with something wrong."""
