"""Little stories: the training text of the bundled language model, and the checks of what it writes."""
