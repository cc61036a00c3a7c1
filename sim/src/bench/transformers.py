# Runs a model folder with transformers on the CPU, for `surf-sim bench engine`.
# Arguments: folder, tokens in the prompt, tokens to generate, bytes of memory (0: all). Prints JSON.
import json, os, sys, tempfile, time

import torch, transformers

folder, prompt, tokens, memory = sys.argv[1], *map(int, sys.argv[2:5])
torch.set_num_threads(os.cpu_count())
transformers.logging.set_verbosity_error()
options = dict(dtype=torch.bfloat16)
if memory:
    offload = tempfile.TemporaryDirectory(dir=os.path.dirname(folder))
    options.update(device_map="auto", max_memory={"cpu": memory}, offload_folder=offload.name)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
ids = torch.tensor([[3 + at * 7 % 1000 for at in range(prompt)]])


def timed(ids, tokens):
    times = []
    with torch.no_grad():
        started, past, step = time.time(), None, ids
        for _ in range(tokens):
            out = model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)
            past, step = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            times.append(time.time() - started)
    return times


timed(ids[:, :4], 2)
times = timed(ids, tokens)
anon = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon")]
rate = (tokens - 1) / (times[-1] - times[0])
print(json.dumps(dict(first_token_s=times[0], tokens_per_s=rate, resident=(anon or [0])[0])))
