"""Writes a trained model as GGUF: f16, Q8_0 and Q4_0, with tokenizer and chat template."""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer

from model import Llama
from tokenizer import END, PAD, SPECIAL, START, merges_of

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

#: File name ending → type of the matrices, type of the embedding (which is the output matrix too), GGUF's file type.
VARIANTS = {
    "f16": (Type.F16, Type.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (Type.Q8_0, Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Type.Q4_0, Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


def tensors_of(model: Llama):
    """(name, array, is a matrix) under GGUF's names. Q and K rows are in pairs already, as ggml's llama has them."""
    yield "token_embd.weight", model.embed
    for i, layer in enumerate(model.layers):
        yield f"blk.{i}.attn_norm.weight", layer.attn_norm
        yield f"blk.{i}.attn_q.weight", layer.q.weight
        yield f"blk.{i}.attn_k.weight", layer.k.weight
        yield f"blk.{i}.attn_v.weight", layer.v.weight
        yield f"blk.{i}.attn_output.weight", layer.o.weight
        yield f"blk.{i}.ffn_norm.weight", layer.ffn_norm
        yield f"blk.{i}.ffn_gate.weight", layer.gate.weight
        yield f"blk.{i}.ffn_up.weight", layer.up.weight
        yield f"blk.{i}.ffn_down.weight", layer.down.weight
    yield "output_norm.weight", model.norm


def write_gguf(model: Llama, tokenizer: Tokenizer, file: Path, variant: str, context: int, name: str) -> None:
    matrix_type, embedding_type, file_type = VARIANTS[variant]
    s = model.s
    w = gguf.GGUFWriter(str(file), "llama")
    w.add_name(name)
    w.add_license("apache-2.0")
    w.add_description("Reads generated documents and answers questions about them; made by Inlay's tools/recall-model.")
    w.add_file_type(file_type)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_vocab_size(s.vocab)
    w.add_context_length(context)
    w.add_embedding_length(s.d_model)
    w.add_block_count(s.layers)
    w.add_feed_forward_length(s.d_ffn)
    w.add_head_count(s.heads)
    w.add_head_count_kv(s.kv_heads)
    w.add_key_length(s.head_dim)
    w.add_value_length(s.head_dim)
    w.add_rope_dimension_count(s.head_dim)
    w.add_rope_freq_base(s.rope_base)
    w.add_layer_norm_rms_eps(s.eps)

    tokens = [tokenizer.id_to_token(i) for i in range(s.vocab)]
    kinds = [_token_kind(token) for token in tokens]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges(merges_of(tokenizer))
    w.add_bos_token_id(tokens.index(START))
    w.add_eos_token_id(tokens.index(END))
    w.add_pad_token_id(tokens.index(PAD))
    w.add_add_bos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)

    for tensor_name, tensor in tensors_of(model):
        data = tensor.detach().cpu().float().numpy()
        if data.ndim == 1:
            w.add_tensor(tensor_name, np.ascontiguousarray(data))
            continue
        kind = embedding_type if tensor_name == "token_embd.weight" else matrix_type
        w.add_tensor(tensor_name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def _token_kind(token: str) -> int:
    if token in SPECIAL:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.UNUSED if token.startswith("<|unused") else gguf.TokenType.NORMAL


def read_checkpoint(folder: Path, shape) -> Llama:
    model = Llama(shape)
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    return model
