"""Study files: what they may say, read, checked and written."""
