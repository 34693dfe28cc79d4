"""`make demo`: the main job on real weights and real text, and PEFT loading what it published.

Prepares model and text once, runs `jobs/precompute.py` with two workers, loads the artifact
both ways that a user would, checks that the adapted model still computes what the base model
does (B = 0), and ends with the job's JSON line.
"""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.prepare_demo import cache_folder, docstrings, smollm2  # noqa: E402

_PROMPT = "def add(a, b):\n    "


def main() -> None:
    """Run the demo; overrides given on the command line go to the job."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    cache = cache_folder()
    _print_progress("1/3 model and text, prepared once")
    model_folder = smollm2(cache)
    docstrings(cache)
    _print_progress("2/3 jobs/precompute.py experiment=demo")
    line = _run_job(sys.argv[1:])
    outcome = json.loads(line)
    _print_progress("3/3 load it with PEFT")
    difference = _largest_change(outcome, model_folder)
    _print_progress(f"largest difference of the logits, adapted against base: {difference:g}")
    if difference != 0.0:
        raise SystemExit("[demo] B is 0, so the adapted model must compute what the base model does")
    _print_progress(_how_to_load(outcome, model_folder))
    print(line, flush=True)


def _run_job(overrides: list[str]) -> str:
    """Run the job as a user would and return its last line; its progress goes to our standard error."""
    job = Path(__file__).with_name("precompute.py")
    done = subprocess.run(
        [sys.executable, str(job), "experiment=demo", *overrides], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return done.stdout.strip().splitlines()[-1]


def _largest_change(outcome: dict[str, Any], model_folder: Path) -> float:
    """Load the artifact as a state dict and as an adapter; return the largest change of any logit."""
    import torch
    from peft import PeftModel, get_peft_model, initialize_lora_eva_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    import eva_dist
    from eva_dist.modeling.peft_rules import LoraConfig

    warnings.filterwarnings("ignore", category=FutureWarning)
    disable_progress_bar()
    folder = _artifact_folder(outcome)
    inputs = AutoTokenizer.from_pretrained(model_folder)(_PROMPT, return_tensors="pt")

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)

    state_dict = eva_dist.load_eva_state_dict(outcome["url"])
    config = LoraConfig.from_pretrained(folder)
    config.rank_pattern, config.alpha_pattern, config.inference_mode = {}, {}, False
    initialised = get_peft_model(base(), config, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(initialised, eva_state_dict=state_dict)
    adapter = PeftModel.from_pretrained(base(), folder, is_trainable=True)
    with torch.no_grad():
        expected = base()(**inputs).logits
        return max(float((m(**inputs).logits - expected).abs().max()) for m in (initialised, adapter))


def _how_to_load(outcome: dict[str, Any], model_folder: Path) -> str:
    folder = _artifact_folder(outcome)
    return f"""the artifact is in {folder} (its README.md is the model card)
load it anywhere:
    base = AutoModelForCausalLM.from_pretrained("{model_folder}")
    model = PeftModel.from_pretrained(base, "{folder}", is_trainable=True)
or into a model of your own:
    state_dict = eva_dist.load_eva_state_dict("{outcome["url"]}")
    peft.initialize_lora_eva_weights(peft_model, eva_state_dict=state_dict)
look at it: eva-dist show {folder}
serve it: eva-dist serve --store {Path(folder).parents[2]}"""


def _artifact_folder(outcome: dict[str, Any]) -> str:
    return url2pathname(urlsplit(outcome["url"]).path)


def _print_progress(text: str) -> None:
    print(f"[demo] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
