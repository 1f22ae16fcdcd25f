"""The one loop of all methods that learn block by block: its passes, features, losses, settings.

Imports `ptmq.network` and what is below.
"""
