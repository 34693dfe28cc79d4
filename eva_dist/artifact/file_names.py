"""What the files of an artifact are called; `manifest.json` is the store's (`store/snapshot.py`)."""

STATE_DICT_FILE = "eva_state_dict.safetensors"
COMPONENTS_FILE = "components.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
SPECTRUM_FILE = "spectrum.parquet"
CONVERGENCE_FILE = "convergence.parquet"
CARD_FILE = "README.md"
