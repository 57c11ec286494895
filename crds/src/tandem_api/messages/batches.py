# SPDX-License-Identifier: Apache-2.0
"""The training batch as it travels: one safetensors body, so neither side needs the other's array library.

n samples, t tokens in all (prompts and responses, concatenated without padding):

==================  =========  =====  =============================================================================
tensor              dtype      shape  meaning
==================  =========  =====  =============================================================================
tokens              int32      [t]    token ids
offsets             int64      [n+1]  sample i is tokens[offsets[i]:offsets[i+1]]
promptLengths       int32      [n]    leading tokens of each sample that are its prompt
lossMask            uint8      [t]    1 where the policy wrote the token
engineLogprobs      float32    [t]    the engine's log-prob of each token; 0 where lossMask is 0
versions            int32      [t]    weight version that produced each token; -1 on the prompt
rewards             float32    [n]    shaped reward (with length penalty)
groups              int32      [n]    index of the prompt within the batch; samples of a prompt are neighbours
==================  =========  =====  =============================================================================

A warm-up set has only the first four. The safetensors metadata holds ``iteration`` and ``digest`` (of the tensors).
"""

CONTENT_TYPE = "application/vnd.safetensors"
BATCH_TENSORS = (
    "tokens",
    "offsets",
    "promptLengths",
    "lossMask",
    "engineLogprobs",
    "versions",
    "rewards",
    "groups",
)
WARMUP_TENSORS = BATCH_TENSORS[:4]
