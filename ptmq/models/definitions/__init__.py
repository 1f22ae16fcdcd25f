"""The few network definitions that no library has as their checkpoints need them, one family a file."""
