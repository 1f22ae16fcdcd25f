"""Baseline methods, one file each; ptmq.methods.interface finds them here."""
