"""What every room speaks: widths, errors, files, progress, the device, and which code a result depends on.

Imports nothing of the project.
"""
