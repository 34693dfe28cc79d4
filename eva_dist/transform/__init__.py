"""From artifact to artifact: derive, merge, compare, export at a uniform rank, push to the Hub."""
