"""The loops of nbconv, callable on their own; nothing here imports from the layers above."""
