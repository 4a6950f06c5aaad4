"""Files of token ids: what their headers say of them, and what their bytes show. No torch, no numpy."""
