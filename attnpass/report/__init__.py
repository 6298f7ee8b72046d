"""What happened, told: the record (data), and its renderings as text, JSON and HTML."""
