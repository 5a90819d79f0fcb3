"""What tests fork processes from: a server that has imported everything already.

There is one for all tests of a process: of two lists of what to import, it would follow one.
"""

import multiprocessing

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("grpo.train", "grpo.loop", "grpo.policy.update", "grpo.rollout.torch_engine"),
        *("grpo.run.checkpoints", "grpo.run.folder", "grpo.run.summary", "tests.unit.policy.batches"),
        *("transformers.models.qwen2.modeling_qwen2", "transformers.core_model_loading", "safetensors.torch"),
        *("torch.distributed.fsdp", "torch.distributed.checkpoint", "torch.distributed.tensor"),
        *("matplotlib.figure", "matplotlib.backends.backend_agg", "tokenizers", "PIL.PngImagePlugin"),
    ]
)
