"""Effects measured end to end: of the models of a run or of a model file, step by step, on disk, with pictures."""
