"""DeepSpeed's ZeRO-3 around models that read weights without calling the modules that hold them.

It splits every parameter over the ranks and gathers a module's when the module is called. Mamba mixers read their
convolution's weights, tiled blocks run their projections many times, and the loss takes the head's tile by tile.
"""

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from nanoalign.models.adapters import base_of


def gather_blocks(model: PreTrainedModel | PeftModel, root: nn.Module | None = None) -> None:
    """Makes ZeRO-3 gather all of a block's weights when the block is called, and the head's when ``root`` is: the
    module whose forward computes the loss, the causal LM itself by default. Call it before DeepSpeed wraps the
    model."""
    from deepspeed.runtime.zero.partition_parameters import register_external_parameter
    from deepspeed.utils import set_z3_leaf_modules

    base = base_of(model)
    names = set(base._no_split_modules or ())
    blocks = {type(module) for module in base.modules() if names & {cls.__name__ for cls in type(module).__mro__}}
    set_z3_leaf_modules(base, list(blocks))
    if isinstance(model, PeftModel):
        base.enable_input_require_grads()  # without it, the first block's weights are released before its backward pass
    if (head := base.get_output_embeddings()) is not None:  # a scorer's is called as a module
        register_external_parameter(root or base, head.weight)
