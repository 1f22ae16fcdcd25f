"""Baseline methods, one file each; ptmq.methods finds them here."""
