"""The one training loop, and what a task and its data must offer to it."""
