"""Training objectives as pure functions: tensors in, one loss per sample out. No model, no state, no reduction."""
