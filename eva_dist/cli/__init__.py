"""The command line: `eva-dist` and each of its commands."""
