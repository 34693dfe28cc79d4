"""The only package with ray: workers as actors, the gang that lives and dies as one, checkpoints, recovery, jobs."""
