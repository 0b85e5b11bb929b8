"""What makes the files that `data/` ships: one recipe a module, each one command."""
