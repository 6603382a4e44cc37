"""Plans how an unmodified JAX training step is cut over devices, says what it costs and why, and runs it."""
