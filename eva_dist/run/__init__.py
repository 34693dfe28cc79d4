"""From settings to a published artifact: single runs, sweeps, and PEFT's function in process."""
