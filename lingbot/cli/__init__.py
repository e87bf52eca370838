"""The command line: what is typed, what is printed, and how a run ends."""
