"""What is dirty: staged bytes, upload plans, the journal."""
