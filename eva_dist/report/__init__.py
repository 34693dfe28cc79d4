"""The report of a sweep: read its points, compare them, write a manifest, a table and a page.

    read_multirun, read_artifact  points from a Hydra multirun folder, artifacts from a store
    point, settings               what a point is, what varies across points
    agreement, compare_points     what is compared, as numbers
    files, table                  sweep.json, sweep.parquet, text for a terminal
    page, ...                     index.html
    sweep                         write_sweep: all of it

None of it imports ray or hydra.
"""
