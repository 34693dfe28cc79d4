"""The artifact: build it (tensors, adapter, tables, plots, card, manifest) and load it with PEFT.

Only `load` is light: it needs torch and safetensors. `build` needs pyarrow, peft and matplotlib.
"""
