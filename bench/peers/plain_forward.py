"""What any program pays that runs a model over a task's prompts once: open it, run it in batches of one length, leave.

A bare script over transformers: the same weights, the same token ids, the same dtype, the logits after each prompt's
last token and nothing else kept. `headcodes discover` is held against it (bench/test_discover.py).

    python bench/peers/plain_forward.py MODEL_FOLDER IDS.json DTYPE

IDS.json holds a list of lists of token ids. Prints the sum of the best logits, so that the work is not for nothing.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

# As many tokens a batch as headcodes takes on a CPU, about.
TOKENS_AT_ONCE = 2048


def main(folder: str, ids: str, dtype: str) -> None:
    """Run every prompt once."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), trust_remote_code=False).eval()
    prompts = sorted(json.loads(Path(ids).read_text()), key=len)
    total = 0.0
    with torch.inference_mode():
        for length, group in groupby(prompts, key=len):
            same = torch.tensor(list(group))
            for batch in same.split(max(1, TOKENS_AT_ONCE // length)):
                logits = model(input_ids=batch, use_cache=False, logits_to_keep=1).logits
                total += float(logits.float().amax(-1).sum())
    print(total)


if __name__ == "__main__":
    main(*sys.argv[1:])
