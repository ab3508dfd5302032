"""What an optimizer is, in words: `repr`, `get_config`, `summary`, and one visitor of its links and states."""
