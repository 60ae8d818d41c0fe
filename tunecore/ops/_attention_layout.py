"""The parameters of the CUDA library's attention, field by field as in ``csrc/attention/attention_cuda.h``."""

from __future__ import annotations

from ctypes import Structure, c_bool, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p


class AttentionRows(Structure):
    """[tokens, heads, D]; D is adjacent, strides are in elements."""

    _fields_ = [("data", c_void_p), ("token_stride", c_int64), ("head_stride", c_int64)]


class Attention(Structure):
    """AttentionParams, then what a GPU needs beside; ``rng_key`` is on the device, the field of the host is unused."""

    _fields_ = [
        ("q", AttentionRows), ("k", AttentionRows), ("v", AttentionRows), ("tokens", c_int64), ("heads", c_int64),
        ("kv_heads", c_int64), ("width", c_int64), ("cu_seqlens_q", c_void_p), ("cu_seqlens_k", c_void_p),
        ("sequences", c_int64), ("longest_q", c_int64), ("longest_k", c_int64), ("causal", c_bool),
        ("prefix_lens", c_void_p), ("window", c_int64), ("scale", c_float), ("alibi_slopes", c_void_p),
        ("relative_bias", c_void_p), ("buckets", c_void_p), ("reach", c_int64), ("bucket_count", c_int64),
        ("drop_below", c_uint32), ("host_rng_key", c_uint64), ("site", c_uint32), ("row_ids", c_void_p),
        ("out", c_void_p), ("lse", c_void_p), ("dout", AttentionRows), ("dq", c_void_p), ("dk", c_void_p),
        ("dv", c_void_p), ("dbias_parts", c_void_p), ("rng_key", c_void_p), ("key_tokens", c_int64),
        ("delta", c_void_p), ("dbias", c_void_p), ("bias_parts", c_void_p), ("device", c_int32), ("dtype", c_int32),
    ]  # fmt: skip
