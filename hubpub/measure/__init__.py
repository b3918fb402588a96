"""What is measured: the file itself, its agreement with the reference model, its speed."""
