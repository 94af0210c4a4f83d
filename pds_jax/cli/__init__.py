"""The command line: flags and the jobs they start."""
