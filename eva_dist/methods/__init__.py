"""Initialisations: what each needs of a pass, and what it makes of it; one file a method."""
