"""The nodes of a network at one width: integers where kernels take them, and how weights lie in a file."""
