"""What a program needs of the machine: files, paths, threads, processes."""
