"""Self or cross attention, prefill or decoding: where Q and K come from."""
