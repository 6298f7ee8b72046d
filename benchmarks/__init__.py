"""What attnpass costs, and whether whole models stay right. Run a script by its path."""
