"""What an artifact's files are called, and the keys in them; `manifest.json` is the store's (`store/snapshot.py`)."""

STATE_DICT_FILE = "eva_state_dict.safetensors"
COMPONENTS_FILE = "components.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
COVARIANCE_FILE = "covariance.safetensors"
SPECTRUM_FILE = "spectrum.parquet"
CONVERGENCE_FILE = "convergence.parquet"
CARD_FILE = "README.md"

ADAPTER_PREFIX = "base_model.model."
"""What PEFT puts before a layer's name in the base model: in a `PeftModel`, and in the keys of `ADAPTER_FILE`."""
