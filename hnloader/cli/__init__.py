"""The `hnloader` command: one file for each verb, and what the verbs share (terminal, errors)."""
