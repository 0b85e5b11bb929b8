"""Checkpoints: V4's files, local and remote, read, written, streamed and rounded."""
