"""The `hnloader` command: one module for each verb, and the modules that the verbs share."""

__all__: list[str] = []
