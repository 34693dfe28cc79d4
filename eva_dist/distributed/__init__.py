"""Processes that work as one: the process group and the exchange of token rows."""
