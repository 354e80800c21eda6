"""How fast each kernel runs, and how fast this machine would let it."""
