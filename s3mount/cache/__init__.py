"""What is known and clean: names, attributes, blocks."""
