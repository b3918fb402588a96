"""What is measured: the file itself, its agreement with the original, its speed."""
