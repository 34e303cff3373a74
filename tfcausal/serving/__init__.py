"""What stands between a trained classifier and a server: the exported model, its card, its requests."""
