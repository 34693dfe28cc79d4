"""The only package that imports ray: one actor a worker, and the gang that lives and dies as one."""
