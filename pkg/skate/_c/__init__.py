"""Built extensions: the arena, resource vectors, frames and references. Each has a hand-written .pyi."""
