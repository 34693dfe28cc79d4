"""A store over HTTP: downloads with the clients that people have, and pages to look at."""
