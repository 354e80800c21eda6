"""File formats: bytes on disk to checked numbers and back. files.py knows files, llmc.py knows llm.c's layouts."""
