"""File formats: bytes on disk to checked numbers and back. files.py knows files, the others llm.c's layouts."""
