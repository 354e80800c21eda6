"""Data: the random stream, token files and their loader, tokenizers, texts."""
