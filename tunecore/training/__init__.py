"""The training loop, from a step's batches to a changed model: unit, run, step, loop, optimizer, state, ranks."""
