"""Words from people and for them: numbers, names that may have been meant, the command line."""
