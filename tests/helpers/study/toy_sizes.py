"""Sizes that all foreign models share."""

VOCAB, CONTEXT, LAYERS, HEADS, WINDOW, EXPERTS = 128, 64, 2, 4, 16, 8
TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
