"""Train on texts with a real language model: `make real-text`."""
