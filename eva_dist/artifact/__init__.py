"""The artifact: build it, read it back, say what it is, and load it with PEFT.

    write, tables, manifest, card/        every file of it
    restore                               the strict reader: what derivations and merges compute with
    summary, layer_table, listing         the tolerant one: what lists and pages show
    load, safetensors_header              tensors by layer, whole or in parts
    facts, file_names, layer_names        what the others have in common
    reading                               values of a manifest that may be anything

Who only shows an artifact needs no torch: `summary` and `layer_table` import neither it nor numpy, `tables` only
numpy and pyarrow.
"""
